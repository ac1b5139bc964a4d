//! What masks find, and what they must not.

use super::*;

const SECRET: &str = "s3cr3t/päss word\"x";

fn mask_of(values: &[&str]) -> Arc<Mask> {
    Arc::new(Mask::of(values.iter().map(|value| ("TOKEN", value.as_bytes()))).unwrap())
}

fn masked_in_pieces(mask: &Arc<Mask>, pieces: &[&[u8]]) -> String {
    let mut masker = Masker::new(Arc::clone(mask));
    let mut masked = Vec::new();
    for piece in pieces {
        masker.feed(piece, &mut masked);
    }
    masker.finish(&mut masked);
    String::from_utf8(masked).unwrap()
}

#[test]
fn a_secret_is_masked_in_every_form_that_tools_print() {
    let mask = mask_of(&[SECRET]);
    for form in [
        SECRET,
        "s3cr3t%2Fp%C3%A4ss%20word%22x",
        "s3cr3t%2fp%c3%a4ss%20word%22x",
        "s3cr3t%2Fp%C3%A4ss+word%22x",
        "s3cr3t/p%C3%A4ss%20word%22x",
        "s3cr3t/päss word\\\"x",
        "s3cr3t\\/päss word\\\"x",
        "s3cr3t/p\\u00e4ss word\\\"x",
        &hex::encode(SECRET),
    ] {
        let shown = mask.text(&format!("before {form} after"));
        assert_eq!(shown, "before *** after", "{form}");
    }
}

#[test]
fn a_secret_is_masked_as_go_html_and_shells_write_it() {
    let mask = mask_of(&["p&ss<w>'\"d"]);
    for form in [
        "p\\u0026ss\\u003cw\\u003e'\\\"d",
        "p&amp;ss&lt;w&gt;&#39;&#34;d",
        "p&amp;ss&lt;w&gt;&apos;&quot;d",
        "p\\&ss\\<w\\>\\'\\\"d",
    ] {
        assert_eq!(mask.text(&format!("before {form} after")), "before *** after", "{form}");
    }
}

#[test]
fn a_secret_from_a_file_is_masked_however_it_is_encoded() {
    use base64::engine::general_purpose::STANDARD;
    let mask = mask_of(&["hunter2hunter2\n", "first line\r\nsecond line\n"]);
    for value in ["hunter2hunter2", "hunter2hunter2\n", "first line", "second line"] {
        assert_eq!(mask.text(&hex::encode(value)), "***", "{value}");
        let shown = mask.text(&STANDARD.encode(value));
        assert!(shown.replace(STARS, "").trim_end_matches('=').len() <= 2, "{value}: {shown}");
    }
}

#[test]
fn a_secret_inside_base64_is_masked_at_every_alignment() {
    use base64::engine::general_purpose::STANDARD;
    let mask = mask_of(&["hunter2hunter2"]);
    for before in ["", "u", "us", "use", "user:"] {
        for after in ["", "\n", "xx", "xyz"] {
            let encoded = STANDARD.encode(format!("{before}hunter2hunter2{after}"));
            let shown = mask.text(&encoded);
            let left = shown.replace(STARS, "");
            assert!(shown.contains(STARS), "{before:?} {after:?}: {shown}");
            assert!(left.len() <= encoded.len() - 17, "{before:?} {after:?}: {shown}");
        }
    }
}

#[test]
fn a_secret_split_at_any_place_is_masked() {
    let mask = mask_of(&["hunter2", "correct horse"]);
    let text = b"a hunter2 b correct horse huntcorrect hunter2";
    let whole = "a *** b *** huntcorrect ***";
    for first in 0..text.len() {
        for second in first..text.len() {
            let pieces = [&text[..first], &text[first..second], &text[second..]];
            assert_eq!(masked_in_pieces(&mask, &pieces), whole, "{first} {second}");
        }
    }
}

#[test]
fn overlapping_secrets_leave_nothing_over() {
    let mask = mask_of(&["abcdef", "defghi", "cdef"]);
    let text = b"xabcdefghiy";
    for cut in 0..text.len() {
        let shown = masked_in_pieces(&mask, &[&text[..cut], &text[cut..]]);
        assert_eq!(shown, "x***y", "{cut}");
    }
}

#[test]
fn a_secret_that_repeats_itself_takes_bounded_memory() {
    let mask = mask_of(&["aaaaaa"]);
    let mut masker = Masker::new(mask);
    let mut masked = Vec::new();
    for _ in 0..1000 {
        masker.feed(b"aaaaaaaaaaaaa", &mut masked);
        assert!(masker.held.len() < 6);
    }
    masker.feed(b"b", &mut masked);
    masker.finish(&mut masked);
    assert_eq!(masked, b"***b");
}

#[test]
fn lines_of_a_long_secret_are_masked_one_by_one() {
    let mask = mask_of(&["-----BEGIN KEY-----\r\nMIIEow\n}\nlast line"]);
    let shown = mask.text("  -----BEGIN KEY-----\n  MIIEow\n  }\n  last line\n");
    assert_eq!(shown, "  ***\n  ***\n  }\n  ***\n");
    assert_eq!(mask.text("\"-----BEGIN KEY-----\\r\\nMIIEow\\n}\\nlast line\""), "\"***\"");
}

#[test]
fn a_beginning_is_found_wherever_the_output_is_cut() {
    let mask = mask_of(&["hunter2", "hunter2hunter3", "aXaXaY", "correct horse"]);
    let text = b"hunter2hunteraXaXaXaYcorrect hors hunter2huntehuaX";
    let slow = |bytes: &[u8]| {
        (1..=bytes.len()).rev().find(|&length| {
            let end = &bytes[bytes.len() - length..];
            mask.forms.iter().any(|form| form.len() > length && form.starts_with(end))
        })
    };
    for end in 0..=text.len() {
        let bytes = &text[..end];
        assert_eq!(mask.undecided(bytes), slow(bytes).unwrap_or(0), "{end}");
    }
}

#[test]
fn a_long_secret_makes_masking_little_more_work() {
    let line = |number: usize| format!("{number:04} MIIEow/+{:060}", number * 7_919);
    let secret: String = (0..220).map(|number| line(number) + "\n").collect();
    assert!(secret.len() > SECRET_BYTES_MAX - 1_000);
    let mask = mask_of(&[&secret]);
    let output = "0 rows of 1234 moved\n".repeat(64 * 1024 / 21);
    let mut compared = 0;

    mask.undecided_by(output.as_bytes(), |form, end| {
        compared += 1;
        form.cmp(end)
    });

    // With every form for every end it is the product of both.
    let product = mask.longest * mask.forms.len();
    assert!(compared < product / 50, "{compared} of {product}");
}

#[test]
fn text_without_the_secret_flows_at_once() {
    let mut masker = Masker::new(mask_of(&["hunter2"]));
    let mut masked = Vec::new();
    masker.feed(b"all done\n", &mut masked);
    assert_eq!(masked, b"all done\n");
}

#[test]
fn a_secret_that_is_too_short_is_refused_by_name_only() {
    for value in ["", "abc"] {
        let error = Mask::of([("PIN", value.as_bytes())]).unwrap_err();
        assert_eq!(error, SecretUnusable::Size { name: "PIN".to_owned() });
    }
    assert!(Mask::of([("PIN", &b"abcd"[..])]).is_ok());
}
