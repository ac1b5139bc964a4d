//! What an attempt costs beside the process itself: 1,000 scripts that do nothing, and 1,000 plain
//! shells that do nothing, one after the other and two at once.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use towpath_engine::ids::Attempt;
use towpath_worker::{AttemptsDir, Ended, Environment, Script, execute};

const ATTEMPTS: u32 = 1_000;
const ROUNDS: u32 = 3;

/// Does nothing, within a shell and with a process of its own.
const SCRIPTS: [&str; 2] = ["true", "/bin/true"];

fn script(folder: &Path, text: &str, number: u32) -> Script {
    Script {
        run: "r1".into(),
        job: "job".into(),
        attempt: Attempt(number),
        fence: u64::from(number),
        script: text.to_owned(),
        shell: Vec::new(),
        env: BTreeMap::new(),
        secrets: Vec::new(),
        folder: folder.to_owned(),
        root: None,
        timeout: Some(Duration::from_secs(60)),
        grace: None,
        artifacts: Vec::new(),
        traceparent: None,
    }
}

async fn attempts(dir: Arc<AttemptsDir>, folder: &Path, text: &str, numbers: Vec<u32>) {
    for number in numbers {
        let script = script(folder, text, number);
        let (lines, _chunks) = mpsc::channel(1);
        let ended = execute(&dir, &script, lines, CancellationToken::new()).await;
        assert!(matches!(ended, Ended::Succeeded { .. }), "{ended:?}");
        dir.forget(&script.run, &script.job, script.attempt);
    }
}

async fn plain(folder: &Path, text: &str, count: u32) {
    for _ in 0..count {
        let status = tokio::process::Command::new("/bin/sh")
            .args(["-c", text])
            .current_dir(folder)
            .process_group(0)
            .status()
            .await;
        assert!(status.is_ok_and(|status| status.success()));
    }
}

async fn round(
    at_once: u32,
    text: &'static str,
    first: u32,
    dir: &Arc<AttemptsDir>,
    folder: &Path,
) {
    let each = ATTEMPTS / at_once;
    let began = Instant::now();
    let tasks = (0..at_once).map(|_| {
        let folder = folder.to_owned();
        tokio::spawn(async move { plain(&folder, text, each).await })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap_or_else(|error| panic!("{error}"));
    }
    let floor = began.elapsed();

    let began = Instant::now();
    let tasks = (0..at_once).map(|lane| {
        let (dir, folder) = (Arc::clone(dir), folder.to_owned());
        let numbers = (0..each).map(|number| first + lane * each + number).collect();
        tokio::spawn(async move { attempts(dir, &folder, text, numbers).await })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap_or_else(|error| panic!("{error}"));
    }
    let ours = began.elapsed();
    let ms = |total: Duration| total.as_secs_f64() * 1e3 / f64::from(ATTEMPTS);
    println!(
        "{at_once} at once, `{text}`: plain {:.3} ms, attempt {:.3} ms, {:+.3} ms, ratio {:.2}",
        ms(floor),
        ms(ours),
        ms(ours) - ms(floor),
        ms(ours) / ms(floor),
    );
}

fn main() -> Result<std::process::ExitCode, Box<dyn std::error::Error>> {
    // The keeper of the attempts below is this program too.
    if let Some(code) = towpath_worker::keeper::serve_if_asked() {
        return Ok(code);
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure())?;
    Ok(std::process::ExitCode::SUCCESS)
}

async fn measure() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let dir = AttemptsDir::open(&folder.path().join("attempts"), Environment::of_process())?;
    let dir = Arc::new(dir);
    let mut first = 1;
    for _ in 0..ROUNDS {
        for text in SCRIPTS {
            for at_once in [1, 2] {
                round(at_once, text, first, &dir, folder.path()).await;
                first += ATTEMPTS;
            }
        }
    }
    Ok(())
}
