//! Texts for a terminal: characters that would control it are escaped, so that a text from a worker or a registry can
//! not move the cursor, hide a line or reorder one. Everything that [`crate::printer`] and [`crate::error`] print passes
//! here; the output of a task's own program does not.

use std::borrow::Cow;

/// Escapes control characters as `\uXXXX`, which JSON also understands. The result has one line.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    escape(text, controls)
}

/// Does the same as [`printable`], but keeps the ends of lines.
pub(crate) fn printable_lines(text: &str) -> Cow<'_, str> {
    escape(text, |character| character != '\n' && controls(character))
}

/// Returns whether a terminal obeys the character instead of showing it: C0 and C1 controls, the separators of lines and
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
    for character in text.chars() {
        if controls(character) {
            escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_controls_a_terminal_is_escaped_and_every_other_character_is_kept() {
        for plain in ["web.1", "größe 大 🦀 e\u{301}", "tab-less \"quoted\" \\ text"] {
            assert_eq!(printable(plain), plain);
        }
        assert_eq!(printable("a\x1b]0;x\x07\u{9b}2J\rb\nc\t"), r"a\u001b]0;x\u0007\u009b2J\u000db\u000ac\u0009");
        assert_eq!(printable("user\u{202e}txt.exe\u{2066}"), r"user\u202etxt.exe\u2066");
        assert_eq!(printable_lines("one\n\x1b[1mtwo"), "one\n\\u001b[1mtwo");
        let json = serde_json::to_string_pretty("\u{9b}").expect("a text");
        assert_eq!(serde_json::from_str::<String>(&printable_lines(&json)).expect("JSON"), "\u{9b}");
    }
}
