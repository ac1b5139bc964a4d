//! probe
use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
};
fn main() {
    let tokens = [
        "'",
        "\"",
        "$(",
        ")",
        "`",
        "\\",
        "\n",
        "<<E\n",
        "\nE\n",
        "#",
        "${A:-",
        "}",
        "$((",
        "))",
        "echo ",
        "case x in x) ",
        ";; esac ",
        ";",
        " ",
        "((",
        "(",
        "$'",
        "a",
        "x=",
        "{ ",
        "<<-'E'\n",
        "$",
        "<",
        "&& ",
        "| cat ",
        "if true; then ",
        "fi ",
        "[[ ",
        "]] ",
        "<(",
        "$[",
        "]",
        "[[ x == ",
        " -eq 1 ]] ",
        "eval ",
        "let ",
        "*",
        "?",
        "~",
        "!",
        "%",
        "$#",
        "#x",
        "\\\n",
        "coproc ",
        "function f { ",
        "$\"",
        "&>",
    ];
    let mut seed: u64 = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(1);
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let n: usize = std::env::args().nth(2).and_then(|a| a.parse().ok()).unwrap_or(1000);
    let dir = std::path::PathBuf::from("/tmp/pwn");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let (mut fine, mut refused) = (0, 0);
    let values = [
        "$(>PWN)",
        "';>PWN;'",
        "\";>PWN;\"",
        "`>PWN`",
        "\n>PWN\n",
        ");>PWN;",
        "}>PWN;",
        "\\';>PWN;#",
        "\nE\n>PWN\n",
        "x]$(>PWN)",
        "a[$(>PWN)]",
    ];
    while fine < n {
        let mut s = String::new();
        for _ in 0..(next() % 9) {
            s.push_str(tokens[(next() % tokens.len() as u64) as usize]);
        }
        s.push_str("${{ env.V }}");
        for _ in 0..(next() % 9) {
            s.push_str(tokens[(next() % tokens.len() as u64) as usize]);
        }
        match towpath_engine::expression::misplaced(&s) {
            Ok(m) if m.is_empty() => {}
            _ => {
                refused += 1;
                continue;
            }
        }
        fine += 1;
        for v in values {
            let ctx = towpath_engine::expression::Context {
                env: BTreeMap::from([("V".into(), v.into())]),
                ..Default::default()
            };
            let filled = towpath_engine::expression::fill_shell(&s, &ctx).unwrap();
            for sh in ["dash", "bash"] {
                // what the template does with a harmless word
                let _ = Command::new(sh)
                    .arg("-c")
                    .arg(&filled)
                    .current_dir(&dir)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .env_clear()
                    .env("PATH", "/usr/bin:/bin")
                    .status();
                if dir.join("PWN").exists() {
                    std::fs::remove_file(dir.join("PWN")).unwrap();
                    println!("INJECTION {sh} {s:?} with {v:?} -> {filled:?}");
                }
            }
        }
        // remove junk files made by redirections
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
    }
    println!("fine {fine} refused {refused}");
}
