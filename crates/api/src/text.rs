//! Texts for people: those that another machine sends, and those of errors.

use std::borrow::Cow;

/// Escapes characters that control a terminal as `\uXXXX`, which JSON also understands, so that a text from a worker or a
/// registry can't move the cursor, hide a line or reorder one. The result has one line.
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, controls)
}

/// Escapes characters that control a terminal as `\uXXXX`, except for the ends of lines.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escape(text, |character| character != '\n' && controls(character))
}

/// Returns the beginning of `text` as [`printable`] does, in at most `bound` bytes. Line feeds and tabs become spaces.
pub fn printable_within(text: &str, bound: usize) -> String {
    let mut shown = String::new();
    for character in text.chars() {
        let before = shown.len();
        match character {
            '\n' | '\t' => shown.push(' '),
            _ => push(&mut shown, character, controls),
        }
        if shown.len() > bound {
            shown.truncate(before);
            break;
        }
    }
    shown
}

/// Returns whether a terminal interprets the character instead of showing it: C0 and C1 controls, the separators of lines and
/// paragraphs, and the marks that change the direction of writing (Unicode Standard Annex #9).
fn controls(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape(text: &str, controls: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&controls) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len());
    text.chars().for_each(|character| push(&mut escaped, character, &controls));
    Cow::Owned(escaped)
}

fn push(escaped: &mut String, character: char, controls: impl Fn(char) -> bool) {
    if controls(character) {
        escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
    } else {
        escaped.push(character);
    }
}

/// Returns the text of an error with its causes.
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |error| error.source()) {
        // The text of a transparent error is the same as that of its cause.
        if !text.ends_with(&cause.to_string()) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("failed to read the file")]
        Read(#[source] std::io::Error),
        #[error(transparent)]
        Transparent(std::io::Error),
        #[error("failed to start")]
        Start(#[source] Box<Failure>),
    }

    #[test]
    fn every_cause_of_an_error_is_said_once() {
        let absent = || std::io::Error::other("no such file");
        let nested = Failure::Start(Box::new(Failure::Read(absent())));
        assert_eq!(with_causes(&nested), "failed to start: failed to read the file: no such file");
        assert_eq!(
            with_causes(&Failure::Start(Box::new(Failure::Transparent(absent())))),
            "failed to start: no such file"
        );
    }

    #[test]
    fn what_controls_a_terminal_is_escaped_and_every_other_character_is_kept() {
        for plain in ["web.1", "größe 大 🦀 e\u{301}", "tab-less \"quoted\" \\ text"] {
            assert_eq!(printable(plain), plain);
        }
        assert_eq!(printable("a\x1b]0;x\x07\u{9b}2J\rb\nc\t"), r"a\u001b]0;x\u0007\u009b2J\u000db\u000ac\u0009");
        assert_eq!(printable("user\u{202e}txt.exe\u{2066}"), r"user\u202etxt.exe\u2066");
        assert_eq!(printable_lines("one\n\x1b[1mtwo"), "one\n\\u001b[1mtwo");
    }

    #[test]
    fn no_text_exceeds_its_bound() {
        assert_eq!(printable_within("it failed:\n\tno such file", 100), "it failed:  no such file");
        assert_eq!(printable_within("\u{1b}[2Jgone\u{202e}", 100), r"\u001b[2Jgone\u202e");
        assert_eq!(printable_within("äöü", 5), "äö", "a character is whole or absent");
        assert_eq!(printable_within("abc\u{1b}", 8), "abc");
        assert_eq!(printable_within("", 0), "");
    }
}
