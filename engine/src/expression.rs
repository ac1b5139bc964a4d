//! The small language of `if` and `${{ }}`: what it may read, and what comes of it.
//!
//! An expression reads `needs.JOB.outcome`, `needs.JOB.outputs.KEY`, `matrix.AXIS`, `env.NAME`,
//! `run.id` and `run.pipeline`, compares them, and passes them through a few filters. A name with
//! hyphens is written as it is; any other goes into brackets: `needs["my job"].outcome`. A minus
//! therefore has spaces around it. There are no functions, loops or repetitions, so that an
//! expression ends soon and its result is never larger than what it reads.
//!
//! Outputs are what an earlier job wrote, and so may be anything. In a script they are put in as
//! one quoted word ([`fill_shell`]); where no shell looks, as they are ([`fill`]). Quoting cannot
//! take the meaning from a leading `-`: a script that passes an output to a program should say
//! `--` first. Nor does it help where a program evaluates its argument once more, as `sh -c` and
//! `ssh` do.

mod inputs;
mod path;
mod shell;

use std::{borrow::Cow, collections::BTreeMap, fmt, ops::Range, sync::LazyLock};

use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, filters, tests as checks};

use crate::ids::JobName;

pub use inputs::Inputs;
pub use path::Path;
pub use shell::{Misplaced, misplaced, quoted};

/// Longest expression, in bytes.
pub const EXPRESSION_BYTES_MAX: usize = 4 * 1024;
/// Most values that an `if` may read. Source: their digests, with the paths, must fit an event.
pub const CONDITION_READS_MAX: usize = 100;
/// Most bytes of a script, or of an environment, with all its values filled in. Source: it is sent
/// to a worker in one message of 4 MiB, beside the names of files.
pub const FILLED_BYTES_MAX: usize = 1024 * 1024;
/// Most steps that one evaluation may take. Source: the longest expression compiles to fewer.
const FUEL: u64 = 20_000;

/// What is wrong with an expression, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExprError {
    /// The bytes of the expression, or of the template, that are to blame.
    pub range: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// Whether the text is well formed, and only a name in it means nothing.
    pub unknown: bool,
}

impl ExprError {
    fn syntax(range: Range<usize>, message: impl Into<String>) -> Self {
        Self { range, message: message.into(), unknown: false }
    }

    fn unknown(range: Range<usize>, message: impl Into<String>) -> Self {
        Self { range, message: message.into(), unknown: true }
    }

    fn moved(mut self, by: usize) -> Self {
        self.range = self.range.start + by..self.range.end + by;
        self
    }
}

impl fmt::Display for ExprError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ExprError {}

/// What an ended job left for those who need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NeedFacts {
    /// How it ended: `succeeded`, `failed`, `skipped`, `cancelled` or `timed_out`.
    pub outcome: String,
    /// What it wrote to `$TOW_OUTPUT`.
    pub outputs: BTreeMap<String, String>,
}

/// What an expression can read at the moment it is evaluated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The jobs before this one that have ended.
    pub needs: BTreeMap<JobName, NeedFacts>,
    /// The matrix values that made the job.
    pub matrix: BTreeMap<String, String>,
    /// The environment of the script, filled in.
    pub env: BTreeMap<String, String>,
    /// The run.
    pub run_id: String,
    /// The pipeline.
    pub pipeline: String,
}

impl Context {
    fn value(&self, path: &Path) -> Option<&str> {
        match path {
            Path::Outcome { job } => self.needs.get(job.as_str()).map(|facts| &*facts.outcome),
            Path::Output { job, key } => {
                self.needs.get(job.as_str())?.outputs.get(key).map(String::as_str)
            }
            Path::Matrix { axis } => self.matrix.get(axis).map(String::as_str),
            Path::Env { name } => self.env.get(name).map(String::as_str),
            Path::RunId => Some(&self.run_id),
            Path::RunPipeline => Some(&self.pipeline),
        }
    }
}

/// What can be said about a job before anything runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NeedKnown<'a> {
    /// It has ended by then. These outputs are declared; `None`: it declares nothing, so any key
    /// may turn up.
    Before(Option<&'a [String]>),
    /// It exists, but is not among the needs, not even indirectly.
    Beside,
    /// It is a matrix: one of its jobs has to be named, such as this one.
    Template(String),
    /// There is no such job. Has the name that was probably intended, if any.
    Missing(Option<String>),
}

/// What an expression may name, checked before any job runs.
pub struct Known<'a> {
    /// What is known about a job.
    pub need: &'a dyn Fn(&str) -> NeedKnown<'a>,
    /// The axes of the job's matrix.
    pub matrix: &'a [String],
    /// The names in the job's environment. `None`: `env` cannot be read here.
    pub env: Option<&'a [String]>,
}

static LANGUAGE: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut language = Environment::empty();
    // A missing value is an error and never an empty text, which a script could take for a valid
    // argument.
    language.set_undefined_behavior(UndefinedBehavior::Strict);
    // Files are written by people who may not own the server, and the expression is evaluated
    // there.
    language.set_fuel(Some(FUEL));
    language.set_debug(true);
    language.add_filter("abs", filters::abs);
    language.add_filter("bool", filters::bool);
    language.add_filter("default", filters::default);
    language.add_filter("first", filters::first);
    language.add_filter("float", filters::float);
    language.add_filter("int", filters::int);
    language.add_filter("last", filters::last);
    language.add_filter("length", filters::length);
    language.add_filter("lower", filters::lower);
    language.add_filter("round", filters::round);
    language.add_filter("split", filters::split);
    language.add_filter("trim", filters::trim);
    language.add_filter("upper", filters::upper);
    language.add_test("defined", checks::is_defined);
    language.add_test("undefined", checks::is_undefined);
    language.add_test("startingwith", checks::is_startingwith);
    language.add_test("endingwith", checks::is_endingwith);
    language.add_test("in", checks::is_in);
    language
});

/// The filters of the language.
pub const FILTERS: [&str; 13] = [
    "abs", "bool", "default", "first", "float", "int", "last", "length", "lower", "round", "split",
    "trim", "upper",
];
/// The words that may follow `is`.
pub const TESTS: [&str; 5] = ["defined", "undefined", "startingwith", "endingwith", "in"];

/// Whether `expr` can be evaluated where `known` is all there is: every fault, in order.
pub fn check(expr: &str, known: &Known<'_>) -> Result<(), Vec<ExprError>> {
    let parsed = path::parse(expr).map_err(|error| vec![error])?;
    compile(&parsed.flat).map_err(|error| vec![error])?;
    // All references are checked, so that a file with ten wrong names needs one round and not ten.
    let mut faults = Vec::new();
    for reference in &parsed.references {
        if let Some(message) = fault(&reference.path, known) {
            faults.push(ExprError::unknown(reference.range.clone(), message));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// As [`check`], for an `if`, which has to come out as true or false.
pub fn check_condition(expr: &str, known: &Known<'_>) -> Result<(), Vec<ExprError>> {
    check(expr, known)?;
    let parsed = path::parse(expr).map_err(|error| vec![error])?;
    too_many_reads(&parsed).map_err(|error| vec![error])?;
    // Outputs are texts: `if: needs.a.outputs.changed` would be true for the text "false".
    let bare = parsed.references.first().filter(|first| expr.trim() == &expr[first.range.clone()]);
    match bare {
        Some(bare) => Err(vec![ExprError::syntax(bare.range.clone(), text_as_condition(expr))]),
        None => Ok(()),
    }
}

/// As [`check`], for every `${{ }}` of a text. Ranges are of the text.
pub fn check_template(template: &str, known: &Known<'_>) -> Result<(), Vec<ExprError>> {
    let mut faults = Vec::new();
    for place in placeholders(template).map_err(|error| vec![error])? {
        let expr = &template[place.inner.clone()];
        if let Err(found) = check(expr, known) {
            faults.extend(found.into_iter().map(|fault| fault.moved(place.inner.start)));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn fault(path: &Path, known: &Known<'_>) -> Option<String> {
    let (job, key) = match path {
        Path::RunId | Path::RunPipeline => return None,
        Path::Matrix { axis } if known.matrix.contains(axis) => return None,
        Path::Matrix { axis } if known.matrix.is_empty() => {
            return Some(format!("`matrix.{axis}` is read, but the job has no matrix"));
        }
        Path::Matrix { axis } => {
            let axes = known.matrix.join("`, `");
            return Some(format!("the matrix has no axis `{axis}`, only `{axes}`"));
        }
        Path::Env { name } => {
            return match known.env {
                None => Some("`env` cannot be read here".to_owned()),
                Some(names) if names.contains(name) => None,
                Some(_) => Some(format!("the job's `env` holds no `{name}`")),
            };
        }
        Path::Outcome { job } => (job, None),
        Path::Output { job, key } => (job, Some(key)),
    };
    match (known.need)(job) {
        NeedKnown::Before(Some(declared)) => match key {
            Some(key) if !declared.contains(key) => {
                let keys = declared.join("`, `");
                Some(format!("`{job}` declares no output `{key}`, only `{keys}`"))
            }
            Some(_) | None => None,
        },
        NeedKnown::Before(None) => None,
        NeedKnown::Beside => Some(format!("`{job}` is read, but not among the job's needs")),
        NeedKnown::Template(example) => {
            Some(format!("`{job}` is a matrix: name one of its jobs, such as `{example}`"))
        }
        NeedKnown::Missing(None) => Some(format!("there is no job `{job}`")),
        NeedKnown::Missing(Some(near)) => {
            Some(format!("there is no job `{job}`; did you mean `{near}`?"))
        }
    }
}

/// What `expr` reads.
pub fn reads(expr: &str) -> Result<Vec<Path>, ExprError> {
    Ok(path::parse(expr)?.references.into_iter().map(|reference| reference.path).collect())
}

/// What the `${{ }}` of a text read.
pub fn template_reads(template: &str) -> Result<Vec<Path>, ExprError> {
    let mut paths = Vec::new();
    for place in placeholders(template)? {
        let found = reads(&template[place.inner.clone()]);
        paths.extend(found.map_err(|error| error.moved(place.inner.start))?);
    }
    Ok(paths)
}

fn too_many_reads(parsed: &path::Parsed) -> Result<(), ExprError> {
    let Some(surplus) = parsed.references.get(CONDITION_READS_MAX) else { return Ok(()) };
    let message = format!("an `if` reads at most {CONDITION_READS_MAX} values");
    Err(ExprError::syntax(surplus.range.clone(), message))
}

/// Whether the condition holds, and everything that it names with the value at this moment.
///
/// The inputs are recorded with the answer, so that it is never evaluated again.
pub fn evaluate_condition(expr: &str, context: &Context) -> Result<(bool, Inputs), ExprError> {
    let parsed = path::parse(expr)?;
    too_many_reads(&parsed)?;
    let value = evaluate(&parsed, context)?;
    let inputs = Inputs::of(&parsed, context);
    match bool::try_from(value) {
        Ok(holds) => Ok((holds, inputs)),
        Err(_) => Err(ExprError::syntax(0..expr.len(), text_as_condition(expr))),
    }
}

fn text_as_condition(expr: &str) -> String {
    let expr = crate::escape::shown(expr.trim());
    format!("`{expr}` is neither true nor false; compare it, as in `{expr} == \"yes\"`")
}

/// The text with every `${{ }}` replaced by its value, as it is.
pub fn fill(template: &str, context: &Context) -> Result<String, ExprError> {
    fill_with(template, context, |value| Ok(Cow::Borrowed(value)))
}

/// The script with every `${{ }}` replaced by its value as one word of a POSIX shell.
///
/// Only where [`misplaced`] finds nothing does a word stay a word; that is checked when the file
/// is read, and once more here.
pub fn fill_shell(template: &str, context: &Context) -> Result<String, ExprError> {
    if let Some(misplaced) = misplaced(template)?.into_iter().next() {
        return Err(ExprError::syntax(misplaced.range, misplaced.place));
    }
    fill_with(template, context, |value| {
        if value.contains('\0') {
            return Err("the value holds a zero byte, which no script can".to_owned());
        }
        Ok(quoted(value))
    })
}

/// The environment with every `${{ }}` filled in. What it holds is readable as `env` only after.
pub fn fill_env(
    env: &BTreeMap<String, String>,
    context: &Context,
) -> Result<BTreeMap<String, String>, ExprError> {
    let mut left = FILLED_BYTES_MAX;
    let mut filled = BTreeMap::new();
    for (name, template) in env {
        let value = fill(template, context)?;
        // All of it goes into one message, so all of it is bounded, not each value alone.
        let needed = name.len() + value.len();
        left = left.checked_sub(needed).ok_or_else(|| too_large(0..template.len()))?;
        filled.insert(name.clone(), value);
    }
    Ok(filled)
}

fn too_large(range: Range<usize>) -> ExprError {
    ExprError::syntax(range, format!("with its values it has more than {FILLED_BYTES_MAX} bytes"))
}

/// The text with every `${{ }}` that reads nothing but the matrix filled in. All others stay, and
/// so does what cannot be filled in: checking the result tells why.
pub fn fill_matrix(template: &str, context: &Context, as_word: bool) -> String {
    let mut filled = String::with_capacity(template.len());
    let mut done = 0;
    for place in placeholders(template).unwrap_or_default() {
        let expr = &template[place.inner.clone()];
        let is_matrix = |paths: Vec<Path>| {
            !paths.is_empty() && paths.iter().all(|path| matches!(path, Path::Matrix { .. }))
        };
        if !reads(expr).is_ok_and(is_matrix) {
            continue;
        }
        if let Ok(value) = value_of(expr, context) {
            filled.push_str(&template[done..place.outer.start]);
            filled.push_str(&if as_word { quoted(&value) } else { Cow::Borrowed(&*value) });
            // The value itself is not scanned again: a `${{ }}` in an output must not be evaluated.
            done = place.outer.end;
        }
    }
    filled.push_str(&template[done..]);
    filled
}

fn fill_with(
    template: &str,
    context: &Context,
    dress: impl Fn(&str) -> Result<Cow<'_, str>, String>,
) -> Result<String, ExprError> {
    let mut filled = String::with_capacity(template.len());
    let mut done = 0;
    for place in placeholders(template)? {
        let expr = &template[place.inner.clone()];
        let value = value_of(expr, context).map_err(|error| error.moved(place.inner.start))?;
        filled.push_str(&template[done..place.outer.start]);
        let dressed = dress(&value);
        filled.push_str(&dressed.map_err(|why| ExprError::syntax(place.outer.clone(), why))?);
        done = place.outer.end;
        // Asked at every step: thousands of placeholders of one long value would otherwise be
        // gigabytes before anything is compared with the bound.
        if filled.len() > FILLED_BYTES_MAX {
            return Err(too_large(place.outer));
        }
    }
    filled.push_str(&template[done..]);
    Ok(filled)
}

fn value_of<'c>(expr: &str, context: &'c Context) -> Result<Cow<'c, str>, ExprError> {
    let parsed = path::parse(expr)?;
    if let [only] = &*parsed.references
        && expr.trim() == &expr[only.range.clone()]
        && let Some(value) = context.value(&only.path)
    {
        return Ok(Cow::Borrowed(value));
    }
    Ok(Cow::Owned(evaluate(&parsed, context)?.to_string()))
}

fn compile(flat: &str) -> Result<minijinja::Expression<'static, 'static>, ExprError> {
    LANGUAGE.compile_expression_owned(flat.to_owned()).map_err(|error| {
        let whole = 0..flat.len();
        let range = error.range().filter(|range| range.end <= flat.len()).unwrap_or(whole);
        let why = error.detail().unwrap_or("this is not a valid expression");
        ExprError::syntax(range, format!("cannot read the expression: {why}"))
    })
}

fn evaluate(parsed: &path::Parsed, context: &Context) -> Result<Value, ExprError> {
    let values: BTreeMap<&str, &str> = parsed
        .references
        .iter()
        .filter_map(|reference| Some((&*reference.variable, context.value(&reference.path)?)))
        .collect();
    let value =
        compile(&parsed.flat)?.eval(Value::from_pairs(values.clone())).map_err(|error| {
            let missing = parsed.references.iter().find(|r| !values.contains_key(&*r.variable));
            match (error.kind(), missing) {
                (ErrorKind::UndefinedError, Some(missing)) => ExprError::unknown(
                    missing.range.clone(),
                    format!("`{}` has no value", missing.path),
                ),
                (kind, _) => {
                    let why = error.detail().map_or_else(|| kind.to_string(), str::to_owned);
                    ExprError::syntax(0..parsed.flat.len(), format!("cannot evaluate: {why}"))
                }
            }
        })?;
    if value.is_undefined() {
        let range = 0..parsed.flat.len();
        return Err(ExprError::unknown(range, "the expression has no value"));
    }
    Ok(value)
}

/// One `${{ }}` of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placeholder {
    /// From `${{` to `}}`.
    pub outer: Range<usize>,
    /// The range between the brackets.
    pub inner: Range<usize>,
}

/// The `${{ }}` of a text, from left to right. `{{ }}` and `${ }` are not touched.
pub fn placeholders(template: &str) -> Result<Vec<Placeholder>, ExprError> {
    let mut places = Vec::new();
    let mut from = 0;
    while let Some(found) = template[from..].find("${{") {
        let start = from + found;
        let inner = start + "${{".len();
        let Some(end) = closing(&template[inner..]).map(|at| inner + at) else {
            let message = "`${{` is never closed with `}}`";
            return Err(ExprError::syntax(start..inner, message));
        };
        from = end + "}}".len();
        places.push(Placeholder { outer: start..from, inner: inner..end });
    }
    Ok(places)
}

/// The offset of `}}` outside of quotes.
fn closing(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut quote = None;
    let mut at = 0;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (None, b'}') if bytes.get(at + 1) == Some(&b'}') => return Some(at),
            (None, b'"' | b'\'') => quote = Some(bytes[at]),
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if open == byte => quote = None,
            (None | Some(_), _) => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests;
