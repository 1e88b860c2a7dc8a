//! The examples of docs/task-model.md and docs/scheduling.md, as they stand there, one after the other on one cluster. An
//! example is a block that begins with three backquotes and `console`: commands after `$`, and what they print. In what is
//! printed, `…` stands for any text, or for any lines; runs of white space count as one, and lines that are left out need no
//! mark. A command fails only if it prints `error: …` here. One that only looks is repeated until it prints what is expected.

use std::path::Path;
use std::process::{Command, Stdio};

use flota_tests::{Cluster, programs, wait_for};

/// Verbs of commands that change nothing.
const LOOKS: [&str; 5] = ["ls", "ps", "inspect", "explain", "history"];

/// Gives `ctl sandbox` the name of the sandbox, which that of a reader has not.
const SANDBOX: &str = r#"
ctl() {
    [ "$1" = sandbox ] || { command ctl "$@"; return; }
    verb=$2
    shift 2
    command ctl sandbox "$verb" --name "$SANDBOX" "$@"
}
"#;

/// A command of a page, with what it prints.
struct Example {
    page: &'static str,
    command: String,
    expected: Vec<String>,
}

impl Example {
    /// Returns the examples of a page.
    fn all(page: &'static str) -> Vec<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
        let text = std::fs::read_to_string(path).unwrap();
        let (mut examples, mut is_inside) = (Vec::<Self>::new(), false);
        for line in text.lines().map(str::trim) {
            match line {
                "```console" => is_inside = true,
                "```" => is_inside = false,
                _ if !is_inside => {}
                _ => match (line.strip_prefix("$ "), examples.last_mut()) {
                    (Some(command), _) => {
                        examples.push(Self { page, command: command.to_owned(), expected: Vec::new() });
                    }
                    (None, Some(example)) => example.expected.push(line.to_owned()),
                    (None, None) => panic!("{page}: a block begins with what is printed: {line}"),
                },
            }
        }
        assert!(!examples.is_empty(), "{page} has examples");
        examples
    }

    /// Runs the command once.
    ///
    /// # Errors
    /// What is not as expected.
    fn run(&self, cluster: &Cluster) -> Result<(), String> {
        let path = format!("{}:{}", programs().display(), std::env::var("PATH").unwrap());
        let host = format!("unix://{}", cluster.socket("m1").display());
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{SANDBOX}{}", self.command)]);
        command.env("PATH", path).env("FLOTA_HOST", host).env("SANDBOX", cluster.name()).stdin(Stdio::null());
        let output = command.output().unwrap();
        let printed = [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned()).concat();
        let fails = self.expected.iter().any(|line| line.starts_with("error: "));
        let mut lines = printed.lines().map(squeezed);
        let missing = self.expected.iter().find(|line| *line != "…" && !lines.any(|it| matches(&squeezed(line), &it)));
        match missing {
            None if output.status.success() != fails => Ok(()),
            None => Err(format!("it ends with {}:\n{printed}", output.status)),
            Some(line) => Err(format!("`{line}` is not printed after what stands before it:\n{printed}")),
        }
    }

    fn only_looks(&self) -> bool {
        self.command.split_whitespace().any(|word| LOOKS.contains(&word))
    }
}

fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether the line is the pattern, in which `…` stands for any text.
fn matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split('…').map(str::trim);
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

#[test]
fn patterns_stand_for_whole_lines() {
    for (pattern, line, is_match) in [
        ("a b", "a b", true),
        ("a", "a b", false),
        ("a …", "a b", true),
        ("… b", "a b", true),
        ("… a", "a b", false),
        ("… x … y …", "1 x 2 y 3", true),
        ("… y … x …", "1 x 2 y 3", false),
    ] {
        assert_eq!(matches(pattern, line), is_match, "{pattern} {line}");
    }
}

#[test]
fn the_examples_of_the_pages_on_tasks_and_scheduling_print_what_they_say() {
    let cluster = Cluster::up(1, 2);
    for example in ["task-model.md", "scheduling.md"].into_iter().flat_map(Example::all) {
        let run = || example.run(&cluster);
        let what = format!("{}: {}", example.page, example.command);
        if example.only_looks() {
            wait_for(&what, run);
        } else {
            run().unwrap_or_else(|why| panic!("{what}: {why}"));
        }
    }
    assert!(cluster.rows("service ls").is_empty(), "the examples leave nothing");
}
