//! Files of variables, in the format of `docker run --env-file`, which is also that of `docker stack deploy`: a line has the
//! form `NAME=value`, and everything behind the `=` is the value, quotes too. A name alone has the value of the environment,
//! or is left out. Empty lines and those that begin with `#` are ignored. Used by stack files and by `ctl` for its flag.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest file in bytes. The variables of a service are far smaller.
const FILE_BOUND: u64 = 1 << 20;

/// Why a file of variables is refused.
#[derive(Debug, thiserror::Error)]
pub enum EnvFileError {
    /// The file can't be read.
    #[error("failed to read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is too large.
    #[error("{path} has more than {FILE_BOUND} bytes", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A line has no variable.
    #[error("{path}:{line}: {why}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The defect.
        why: String,
    },
}

/// Reads the variables in a file, as `NAME=value`. `environment` returns the value of a variable of the environment.
///
/// # Errors
/// The file can't be read, has more than 1 MiB, or has a line without a variable.
pub fn read(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<Vec<String>, EnvFileError> {
    let failed = |source| EnvFileError::Read { path: path.to_owned(), source };
    let mut text = Vec::new();
    // A pipe has no size, so it is not the size of the file that is checked.
    File::open(path).and_then(|file| file.take(FILE_BOUND + 1).read_to_end(&mut text)).map_err(failed)?;
    if text.len() as u64 > FILE_BOUND {
        return Err(EnvFileError::TooLarge { path: path.to_owned() });
    }
    parse(&text, environment).map_err(|(line, why)| EnvFileError::Line { path: path.to_owned(), line, why })
}

fn parse(text: &[u8], environment: &dyn Fn(&str) -> Option<String>) -> Result<Vec<String>, (usize, String)> {
    // Editors of Windows write this mark at the beginning of a file.
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    let mut variables = Vec::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let number = index + 1;
        let line = str::from_utf8(line).map_err(|_| (number, "it is not UTF-8".to_owned()))?;
        let line = line.strip_suffix('\r').unwrap_or(line).trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or_default();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err((number, format!("`{}` is not a name of a variable", name.escape_debug())));
        }
        match line.contains('=') {
            true => variables.push(line.to_owned()),
            false => variables.extend(environment(name).map(|value| format!("{name}={value}"))),
        }
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &[u8]) -> Result<Vec<String>, (usize, String)> {
        parse(text, &|name| (name == "USER").then(|| "ada".to_owned()))
    }

    #[test]
    fn variables_are_taken_as_docker_takes_them() {
        let text = "\u{feff}A=1\n# B=2\n\n  C = d \nQ=\"x y\"\r\nE=\nF=a=b # c\nUSER\nUNSET\nlast";
        assert_eq!(parsed(text.as_bytes()), Err((4, "`C ` is not a name of a variable".into())));
        let text = text.replace("C = d ", "C=d ");
        assert_eq!(parsed(text.as_bytes()).expect("good"), ["A=1", "C=d ", "Q=\"x y\"", "E=", "F=a=b # c", "USER=ada"]);
    }

    #[test]
    fn a_line_without_a_variable_is_named() {
        for (text, expected) in [
            (&b"A=1\n=2"[..], (2, "`` is not a name of a variable".to_owned())),
            (b"export A=1", (1, "`export A` is not a name of a variable".to_owned())),
            (b"A=1\nB=\xff", (2, "it is not UTF-8".to_owned())),
        ] {
            assert_eq!(parsed(text), Err(expected));
        }
    }

    #[test]
    fn a_file_that_can_not_be_read_or_is_too_large_is_named() {
        let path = std::env::temp_dir().join(format!("flota-env-{}", std::process::id()));
        let error = read(&path, &|_| None).expect_err("it is not there").to_string();
        assert_eq!(error, format!("failed to read {}", path.display()));
        std::fs::write(&path, "A=1\nA B=1\n").expect("a temporary file");
        let error = read(&path, &|_| None).expect_err("it has a bad line").to_string();
        assert_eq!(error, format!("{}:2: `A B` is not a name of a variable", path.display()));
        let error = read(Path::new("/dev/zero"), &|_| None).expect_err("it has no end").to_string();
        assert_eq!(error, "/dev/zero has more than 1048576 bytes");
        std::fs::remove_file(path).expect("its own file");
    }
}
