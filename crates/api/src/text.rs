//! Texts that another machine sends to be read by people.

/// Returns the beginning of `text`, of at most `bound` bytes, with nothing in it that a terminal obeys: line feeds and
/// tabs become spaces, and other control characters are escaped (`\u{1b}`).
pub fn printable(text: &str, bound: usize) -> String {
    let mut shown = String::new();
    for character in text.chars() {
        let before = shown.len();
        match character {
            '\n' | '\t' => shown.push(' '),
            _ if character.is_control() => shown.extend(character.escape_default()),
            _ => shown.push(character),
        }
        if shown.len() > bound {
            shown.truncate(before);
            break;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn no_text_moves_the_cursor_or_exceeds_its_bound() {
        assert_eq!(printable("it failed:\n\tno such file", 100), "it failed:  no such file");
        assert_eq!(printable("\u{1b}[2Jgone\r\u{9b}1m", 100), "\\u{1b}[2Jgone\\r\\u{9b}1m");
        assert_eq!(printable("äöü", 5), "äö", "a character is whole or absent");
        assert_eq!(printable("abc\u{1b}", 5), "abc");
        assert_eq!(printable("", 0), "");
    }
}
