//! What people write by mistake, and what they are told.

use crate::ends::{ended, err, folder_with, tow};

#[test]
fn an_actor_that_cannot_be_one_is_a_usage_error_everywhere() {
    let folder = folder_with("stages: [s]\njobs:\n  a: {stage: s, command: 'true'}\n");
    for (actor, advice) in [
        ("bob", "Write `--actor human:bob` for a person"),
        ("human:", "Write `human:NAME`, `agent:NAME` or `service:NAME`"),
        ("root:bob", "Write `human:NAME`, `agent:NAME` or `service:NAME`"),
    ] {
        for command in ["run", "list"] {
            let refused = ended(&mut tow(folder.path(), &[], &[command, "--actor", actor]));
            assert_eq!(refused.status.code(), Some(2), "{}", err(&refused));
            let said = err(&refused);
            assert!(said.contains("error[USAGE]") && said.contains(advice), "{said}");
        }
    }
}

#[test]
fn a_tilde_that_no_shell_replaced_means_home() {
    let folder = folder_with("");
    let add = ["context", "add", "prod", "--server", "db:7433", "--token-file=~/token"];
    let added = ended(&mut tow(folder.path(), &[], &add));
    assert_eq!(added.status.code(), Some(0), "{}", err(&added));

    let shown = ended(&mut tow(folder.path(), &[], &["context", "show", "prod"]));
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let wanted = folder.path().join("token").display().to_string();
    assert!(shown.contains(&wanted), "{shown}");
}
