//! What placeholders are filled with, and where a value stays one word of the shell.

use super::*;

#[test]
fn what_is_filled_in_is_bounded_before_it_grows() {
    let outputs = [("q".to_owned(), "'".repeat(4_000))].into();
    let facts = NeedFacts { outcome: "succeeded".to_owned(), outputs };
    let context = Context { needs: [("a".into(), facts)].into(), ..Context::default() };
    let script = "echo ${{ needs.a.outputs.q }}\n".repeat(1_000);

    let error = fill_shell(&script, &context).unwrap_err();
    assert_eq!(error.message, "with its values it has more than 1048576 bytes");
    let each = "${{ needs.a.outputs.q }}".repeat(200);
    let env: BTreeMap<String, String> = [("A".to_owned(), each.clone())].into();
    assert!(fill_env(&env, &context).is_ok());
    let env: BTreeMap<String, String> =
        ["A", "B"].map(|name| (name.to_owned(), each.clone())).into();
    assert!(fill_env(&env, &context).is_err(), "all values together are bounded");
}

#[test]
fn only_dollar_and_two_braces_are_filled() {
    let template = "${A} {{ b }} ${{matrix.table}}-${{ run.id|upper }} ${{ '}}' }} $";
    assert_eq!(
        fill(template, &context()).unwrap(),
        "${A} {{ b }} order items-0123456789ABCDEF }} $"
    );
    assert!(fill("${{ run.id", &context()).is_err());
    assert_eq!(fill("plain", &context()).unwrap(), "plain");
}

#[test]
fn a_value_in_a_script_stays_one_word() {
    let filled =
        fill_shell("x --t=${{ matrix.table }} -- ${{needs.copy.outputs.nasty}}", &context());
    assert_eq!(filled.unwrap(), r"x --t='order items' -- 'a'\''; rm -rf / #'");
    assert_eq!(quoted("a/b-1.2:3,@%+"), "a/b-1.2:3,@%+");
    assert_eq!(quoted(""), "''");
    assert_eq!(quoted("LD_PRELOAD=x"), "'LD_PRELOAD=x'");
    assert_eq!(quoted("$(id)`id`\n"), "'$(id)`id`\n'");
}

#[test]
fn a_value_is_refused_where_it_would_not_stay_one_word() {
    let refused = [
        "'${{ run.id }}'",
        "\"${{ run.id }}\"",
        "echo \"a $(echo ${{ run.id }})\"",
        "\"$(echo \"${{ run.id }}\")\"",
        "echo `echo ${{ run.id }}`",
        "echo \\${{ run.id }}",
        "echo $${{ run.id }}",
        "true # ${{ run.id }}",
        "echo $((1 + ${{ run.id }}))",
        "if ((${{ run.id }} > 1)); then :; fi",
        "cat <<EOF\nx ${{ run.id }}\nEOF\n",
        "cat <<-'EOF'\n\tx ${{ run.id }}\n\tEOF\n",
        "echo $'it\\'s ${{ run.id }}'",
        // To a dash the quote ends at the backslash, and the value stands in the next one.
        "echo $'it\\'s' ${{ run.id }} '",
        // The line that looks like the end belongs to the one before it, or is another word.
        "cat <<E\n$x\\\nE\necho ${{ run.id }}\nE\n",
        "cat <<E\nE\r\necho ${{ run.id }}\nE\n",
        "cat <<E\r\nE\necho ${{ run.id }}\nE\n",
        "cat <<'E F'\nE\necho ${{ run.id }}\nE F\n",
        "cat <<--E\nE\necho ${{ run.id }}\n-E\n",
        "echo ${${{ run.id }}}",
        "echo $${ #${{ run.id }}",
        "echo ${A${{ run.id }}}",
        "echo ${#${{ run.id }}}",
        "echo \"${A:-'${{ run.id }}'}\"",
        "echo $[ ${{ run.id }} ]",
        "[[ ${{ run.id }} -eq 1 ]]",
        "true; eval echo 2>&1 ${{ run.id }}",
        "let x=${{ run.id }}",
        "echo $\\\n${{ run.id }}",
        "echo \"$\\\n(echo \"${{ run.id }}\")\"",
        "echo \"$(case x in a) echo;; esac)\" ${{ run.id }}",
        // After an operator a word begins, and so does a comment: its quote is none.
        "(true)#it's a comment\necho '${{ run.id }}'",
        "true>#it's a comment\necho '${{ run.id }}'",
        // To a dash two subshells, and `))` in quotes ends neither.
        "((echo \"))\") ; echo \"${{ run.id }}\")",
        "((cat <<E\n))\nE\n) ; echo ${{ run.id }})",
        "(( # )) '\n1)); echo ${{ run.id }} '",
        "echo $((echo \"))\") ; echo \"${{ run.id }}\")",
        "trap ${{ run.id }} EXIT",
    ];
    for script in refused {
        assert_eq!(misplaced(script).unwrap().len(), 1, "{script}");
        assert!(fill_shell(script, &context()).is_err(), "{script}");
    }
}

#[test]
fn a_value_is_welcome_wherever_words_stand() {
    let fine = [
        "echo ${{ run.id }}",
        "echo 'a' \"b\" ${{ run.id }}",
        "x=$(echo ${{ run.id }}) # don't\necho ${{ run.id }}",
        "echo ${A:-${{ run.id }}} $# ${#A}",
        "cat <<EOF\nit's fine\nEOF\necho ${{ run.id }}",
        "echo \"$(date)\" ${{ run.id }}",
        "case $x in a) echo ${{ run.id }};; esac",
        "echo \\\" ${{ run.id }}",
        "echo $((1 + 2)) $(( (1 << 2) )) ${{ run.id }}",
        "((i = (i + 1) * 2, j > 1 && k)); echo ${{ run.id }}",
        "echo $(( $(date +%s) - ${#A} )); trap 'rm x' EXIT\necho ${{ run.id }}",
        "cat <<< x; echo ${{ run.id }}",
        "[[ $a == b ]] && [ x = ${{ run.id }} ]",
        "run --a \\\n  --b ${{ run.id }} \\\n  --c",
        "eval x; evaluate --letter ${{ run.id }}",
        "echo $'a\\n' ${{ run.id }}",
        "cat <<'E'\na \\\nE\necho ${{ run.id }} ${A%${{ run.id }}}",
    ];
    for script in fine {
        assert_eq!(misplaced(script).unwrap(), [], "{script}");
    }
}

#[test]
fn an_environment_is_filled_as_it_is() {
    let env = BTreeMap::from([("A".to_owned(), "${{ needs.copy.outputs.nasty }}".to_owned())]);
    assert_eq!(fill_env(&env, &context()).unwrap()["A"], "a'; rm -rf / #");
}
