//! About how much memory a run takes, for those who bound it.

use super::{Job, Run};
use crate::{ids::JobName, plan::JobPlan};

/// What the indexes hold for one job, beside its needs: places in lists and maps, and the name of
/// the job. Source: measured with runs of 50,000 jobs.
const INDEX_BYTES: usize = 200;

impl Run {
    /// About how many bytes of memory the run takes. Walks all jobs.
    pub fn memory_bytes(&self) -> usize {
        // An estimate, used to decide which idle runs are dropped from memory. It must grow with
        // everything that a job or a user can make large.
        let jobs = self.jobs.iter().map(Job::memory_bytes).sum::<usize>();
        size_of::<Self>() + jobs + self.carried.values().map(Job::memory_bytes).sum::<usize>()
    }
}

impl Job {
    fn memory_bytes(&self) -> usize {
        let outputs: usize = self.outputs.iter().map(|(name, text)| name.len() + text.len()).sum();
        let artifacts: usize = self.artifacts.iter().map(|file| file.path.len()).sum();
        let approvals: usize = self.approvals.iter().map(|approval| approval.comment.len()).sum();
        let imported = self.imported.as_ref().map_or(0, |imported| imported.error.len());
        let texts = outputs + artifacts + approvals + imported;
        size_of::<Self>() + INDEX_BYTES + self.plan.memory_bytes() + texts
    }
}

impl JobPlan {
    fn memory_bytes(&self) -> usize {
        let lists = [&self.shell, &self.secrets, &self.tags, &self.artifacts];
        let lists: usize = lists.into_iter().flatten().map(|text| TEXT_BYTES + text.len()).sum();
        let maps = [&self.env, &self.matrix];
        let maps = maps.into_iter().flatten();
        let maps: usize = maps.map(|(key, value)| 2 * TEXT_BYTES + key.len() + value.len()).sum();
        let needs: usize =
            self.needs.iter().map(|need| size_of::<JobName>() + need.as_str().len() + 8).sum();
        let condition = self.condition.as_ref().map_or(0, String::len);
        let undo = self.undo.as_ref().map_or(0, String::len);
        let script = self.script.len() + condition + undo;
        size_of::<Self>() + 2 * self.name.as_str().len() + script + lists + maps + needs
    }
}

/// What a text takes beside its characters.
const TEXT_BYTES: usize = size_of::<String>();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_job_holds_counts() {
        let plain = JobPlan::new("a", "s", "true");
        let mut large = plain.clone();
        large.script = "x".repeat(10_000).into();
        large.env.insert("A".to_owned(), "y".repeat(10_000));
        large.needs = (0..1_000).map(|n| JobName::from(format!("need {n}").as_str())).collect();

        assert!(plain.memory_bytes() < 2_000, "{}", plain.memory_bytes());
        assert!(large.memory_bytes() - plain.memory_bytes() > 20_000 + 1_000 * 8);
    }
}
