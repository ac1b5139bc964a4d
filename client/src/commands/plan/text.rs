//! An outlook as text, no wider than the terminal.

use towpath_engine::time::duration_words;
use unicode_width::UnicodeWidthStr as _;

use super::report::{PlanReport, Resume, Retry};
use crate::{
    commands::{run::PARALLELISM, validate::counted},
    render::{Style, safe},
};

/// Where the facts below the stages begin.
const LABEL_COLUMNS: usize = 16;
/// With less room than this beside its label, a list begins below it.
const ITEM_COLUMNS_MIN: usize = 16;
/// Most jobs that are listed of one wave, one chain or one fact.
const NAMES_MAX: usize = 40;
/// Most waves that are listed of one stage.
const WAVES_MAX: usize = 30;

/// All of it.
pub(super) fn text(outlook: &PlanReport, style: &Style) -> String {
    let mut page = Page { text: String::new(), style };
    page.head(outlook);
    for stage in &outlook.stages {
        page.line(&format!("  {}", style.bold(&style.fit(&safe(&stage.name), page.room(2)))));
        // A plan of ten thousand jobs is still a page that a person reads.
        for (at, wave) in stage.waves.iter().take(WAVES_MAX).enumerate() {
            let names = wave.iter().map(|job| page.marked(outlook, job)).collect();
            page.list(&format!("{:>5}  ", at + 1), names, ", ");
        }
        if let Some(more) = stage.waves.len().checked_sub(WAVES_MAX).filter(|more| *more > 0) {
            page.line(&format!("       and {more} more"));
        }
    }
    if outlook.would_run > 0 {
        page.line("");
        page.facts(outlook);
    }
    if let Some(resume) = &outlook.resume {
        page.resume(resume);
    }
    page.text
}

struct Page<'s> {
    text: String,
    style: &'s Style,
}

impl Page<'_> {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Columns that are left after `used`.
    fn room(&self, used: usize) -> usize {
        self.style.width.saturating_sub(used)
    }

    fn head(&mut self, outlook: &PlanReport) {
        let style = self.style;
        let sign = if style.ascii { "^" } else { "▲" };
        let title = style.fit(&safe(&outlook.pipeline), self.room(4));
        let total = counted(outlook.jobs, "job");
        let what = match &outlook.resume {
            None => format!("{total} in {}", counted(outlook.stages.len(), "stage")),
            Some(resume) if outlook.would_run == 0 => {
                format!("nothing to resume in run {}", resume.short_id)
            }
            Some(resume) => {
                format!("run {}: {} of {total} would run", resume.short_id, outlook.would_run)
            }
        };
        let what = style.fit(&what, self.room(4 + title.width()));
        self.line(&format!("{sign} {}  {}", style.bold(&title), style.dim(&what)));
    }

    fn marked(&self, outlook: &PlanReport, job: &str) -> String {
        // Only a gate stops the eye; the rest is said below.
        match outlook.gates.iter().any(|gate| gate == job) {
            true => format!("{} {}", if self.style.ascii { "||" } else { "‖" }, safe(job)),
            false => safe(job),
        }
    }

    fn facts(&mut self, outlook: &PlanReport) {
        let arrow = if self.style.ascii { " -> " } else { " → " };
        let chain = &outlook.critical_path;
        if chain.jobs.len() > 1 || chain.total_ms.is_some() {
            let names = chain.jobs.iter().map(|job| safe(job)).collect();
            self.list(&label("longest chain"), names, arrow);
        }
        if let (Some(total), Some(run)) = (chain.total_ms, &chain.estimated_from) {
            let about = format!("{} along that chain, by run {run}", duration_words(total));
            self.fact("takes about", vec![about]);
        }
        // A resumed run keeps its parallelism, and the default would be wrong.
        if outlook.resume.is_none() {
            let widest = counted(outlook.widest_wave, "job");
            self.prose("side by side", &format!("up to {widest} (-p {PARALLELISM} by default)"));
        }
        self.names("gates", &outlook.gates);
        self.names("no way back", &outlook.points_of_no_return);
        self.names("failure aborts", &outlook.aborting);
        for (at, lock) in outlook.locks.iter().enumerate() {
            let label = if at == 0 { "locks" } else { "" };
            let mut names: Vec<String> = lock.jobs.iter().map(|job| safe(job)).collect();
            if let Some(first) = names.first_mut() {
                // In the first entry and not on a line of its own, so that the list wraps as one.
                *first = format!("{} ({} at once): {first}", safe(&lock.name), lock.limit);
            }
            self.fact(label, names);
        }
        for (at, job) in outlook.conditional.iter().take(NAMES_MAX).enumerate() {
            let label = if at == 0 { "only if" } else { "" };
            self.prose(label, &format!("{}: {}", safe(&job.job), safe(&job.condition)));
        }
        for (at, retry) in outlook.retries.iter().take(NAMES_MAX).enumerate() {
            let label = if at == 0 { "retried" } else { "" };
            self.prose(label, &retry_words(retry));
        }
        self.names("worker tags", &outlook.tags);
        let state = |set: bool| if set { "set" } else { "NOT SET here" };
        let secret = |secret: &super::report::Secret| {
            format!("{} ({})", safe(&secret.name), state(secret.set))
        };
        self.fact("secrets", outlook.secrets.iter().map(secret).collect());
        self.fact("time limit", outlook.timeout_ms.map(duration_words).into_iter().collect());
    }

    fn resume(&mut self, resume: &Resume) {
        let short = |digest: &str| digest.chars().take(12).collect::<String>();
        let frozen = short(&resume.plan_sha256_frozen);
        self.names("done, kept", &resume.kept);
        let plan = match &resume.plan_sha256_now {
            None => "the file was deleted; the plan of the run is used".to_owned(),
            Some(_) if !resume.plan_changed => "unchanged since the run began".to_owned(),
            Some(now) => format!(
                "CHANGED since the run began ({frozen}, now {}); resume needs --accept-changes",
                short(now)
            ),
        };
        self.prose("plan", &plan);
    }

    fn names(&mut self, name: &str, jobs: &[String]) {
        self.fact(name, jobs.iter().map(|job| safe(job)).collect());
    }

    /// A labelled list; nothing if it is empty.
    fn fact(&mut self, name: &str, items: Vec<String>) {
        if !items.is_empty() {
            self.list(&label(name), items, ", ");
        }
    }

    /// A labelled sentence.
    fn prose(&mut self, name: &str, words: &str) {
        self.wrap(&label(name), words.split(' ').map(str::to_owned).collect(), " ");
    }

    /// The first of `items` after `head`, continuing below their first line.
    fn list(&mut self, head: &str, mut items: Vec<String>, between: &str) {
        let more = items.len().saturating_sub(NAMES_MAX);
        if more > 0 {
            items.truncate(NAMES_MAX);
            items.push(format!("and {more} more"));
        }
        self.wrap(head, items, between);
    }

    fn wrap(&mut self, head: &str, items: Vec<String>, between: &str) {
        let mut head = head;
        if self.room(head.width()) < ITEM_COLUMNS_MIN {
            self.line(head.trim_end());
            head = "    ";
        }
        let indent = head.width();
        let room = self.room(indent);
        let count = items.len();
        let (mut line, mut used) = (head.to_owned(), 0);
        for (at, item) in items.into_iter().enumerate() {
            let mut item = item;
            if at + 1 < count {
                item.push_str(between);
            }
            let item = self.style.fit(&item, room);
            if used > 0 && used + item.trim_end().width() > room {
                self.line(line.trim_end());
                line = " ".repeat(indent);
                used = 0;
            }
            used += item.width();
            line.push_str(&item);
        }
        self.line(line.trim_end());
    }
}

fn label(name: &str) -> String {
    format!("  {name:<LABEL_COLUMNS$}")
}

fn retry_words(retry: &Retry) -> String {
    let times = if retry.max == 1 { "once".to_owned() } else { format!("{} times", retry.max) };
    let mut words = format!("{}: {times}", safe(&retry.job));
    if retry.backoff_ms > 0 {
        words = format!("{words} after {}", duration_words(retry.backoff_ms));
    }
    if !retry.on.is_empty() {
        words = format!("{words} on {}", retry.on.join(" or "));
    }
    words
}

#[cfg(test)]
mod tests {
    use towpath_engine::plan::{JobPlan, Plan};

    use super::{super::report::tests::one_of_everything, *};
    use crate::render::tests::bare;

    #[test]
    fn a_plan_reads_well_at_60_columns() {
        let took = |_: &towpath_engine::ids::JobName| 2_000;
        let outlook = PlanReport::of(&one_of_everything(), |_| true, took);
        let outlook = outlook.estimated_from(Some("7f3ca1".into()));
        assert_eq!(
            text(&outlook, &bare(60)),
            "\
▲ shop  4 jobs in 2 stages
  copy
    1  customers, products
    2  orders
  cutover
    1  ‖ switch

  longest chain   customers → orders → switch
  takes about     6.0s along that chain, by run 7f3ca1
  side by side    up to 2 jobs (-p 4 by default)
  gates           switch
  no way back     switch
  failure aborts  customers
  locks           target (2 at once): products
  only if         products: matrix.x == 1
  retried         orders: 3 times after 1.0s on exit code 7
                  or timeout
  worker tags     eu
  secrets         TOW_TEST_NEVER_SET (NOT SET here)
  time limit      1h00m
"
        );
    }

    #[test]
    fn a_resume_says_what_is_kept_and_whether_the_plan_changed() {
        let plan = one_of_everything();
        let resume = |kept: &[&str], now: Option<&str>| Resume {
            run: "7f3ca10b2d4e6f80".into(),
            short_id: "7f3ca1".into(),
            kept: kept.iter().map(|name| (*name).into()).collect(),
            plan_changed: now == Some("cafe"),
            plan_sha256_frozen: "0011223344556677".into(),
            plan_sha256_now: now.map(str::to_owned),
        };
        let rest =
            PlanReport::of(&plan, |job| job.as_str() == "switch", |_| 1).estimated_from(None);
        let shown =
            text(&rest.resuming(resume(&["customers", "products"], Some("cafe"))), &bare(60));
        assert!(shown.starts_with("▲ shop  run 7f3ca1: 1 of 4 jobs would run\n"), "{shown}");
        assert!(shown.contains("  done, kept      customers, products\n"), "{shown}");
        assert!(shown.contains("  plan            CHANGED since the run began ("), "{shown}");

        let none = PlanReport::of(&plan, |_| false, |_| 0).resuming(resume(&["switch"], None));
        assert_eq!(
            text(&none, &bare(60)),
            "\
▲ shop  nothing to resume in run 7f3ca1
  done, kept      switch
  plan            the file was deleted; the plan of the run
                  is used
"
        );
    }

    #[test]
    fn nothing_is_wider_than_the_terminal_and_long_lists_end() {
        let mut plan = Plan {
            pipeline: "a pipeline with quite a long name, and 日本語 in it".into(),
            stages: vec!["a stage with quite a long name".into()],
            jobs: Vec::new(),
            timeout_ms: None,
        };
        for number in 0..200 {
            let name = format!("the job with 日本語 and number {number}");
            let mut job = JobPlan::new(&name, "a stage with quite a long name", "true");
            if number > 100 {
                job.needs = vec![plan.jobs[number - 1].name.clone()];
            }
            job.irreversible = true;
            plan.jobs.push(job);
        }
        let outlook = PlanReport::of(&plan, |_| true, |_| 0);
        for width in [24, 40, 60, 100] {
            let shown = text(&outlook, &bare(width));
            for line in shown.lines() {
                assert!(line.width() <= width, "{width}: {line:?}");
            }
            assert!(shown.lines().count() < 400, "{shown}");
        }
    }
}
