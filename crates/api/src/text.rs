//! Texts for people: those that another machine sends, and those of errors.

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
    use super::{printable, with_causes};

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
    fn no_text_moves_the_cursor_or_exceeds_its_bound() {
        assert_eq!(printable("it failed:\n\tno such file", 100), "it failed:  no such file");
        assert_eq!(printable("\u{1b}[2Jgone\r\u{9b}1m", 100), "\\u{1b}[2Jgone\\r\\u{9b}1m");
        assert_eq!(printable("äöü", 5), "äö", "a character is whole or absent");
        assert_eq!(printable("abc\u{1b}", 5), "abc");
        assert_eq!(printable("", 0), "");
    }
}
