//! The commands of the pages in deploy/runbooks, run as they stand there.

use std::path::Path;
use std::process::{Command, Stdio};

use flota_tests::{Cluster, Output, programs};

/// The pages with commands, and the folder in which they run.
pub(super) struct Runbook {
    text: String,
    pub(super) folder: tempfile::TempDir,
}

impl Runbook {
    pub(super) fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/runbooks").join(name);
        Self { text: std::fs::read_to_string(path).unwrap(), folder: tempfile::tempdir().unwrap() }
    }

    /// Returns the commands for this machine, one text for each block, in the order of the page.
    pub(super) fn blocks(&self, machine: &str) -> Vec<String> {
        let mut blocks = Vec::new();
        let mut lines = self.text.lines();
        while let Some(line) = lines.next() {
            if line.trim() == format!("```sh {machine}") {
                let block = lines.by_ref().take_while(|line| line.trim() != "```");
                blocks.push(block.map(|line| format!("{}\n", line.trim())).collect());
            }
        }
        assert!(!blocks.is_empty(), "the page has commands for {machine}");
        blocks
    }

    /// Runs commands as a shell on `node` does, up to the first that fails.
    pub(super) fn run(&self, cluster: &Cluster, node: &str, commands: &str) -> Output {
        // First what stands for a program of the machine.
        let own = self.folder.path().join("bin");
        let path = format!("{}:{}:{}", own.display(), programs().display(), std::env::var("PATH").unwrap());
        let host = format!("unix://{}", cluster.socket(node).display());
        let output = Command::new("sh")
            .args(["-e", "-c", commands])
            .env("PATH", path)
            .env("FLOTA_HOST", host)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs commands, which must succeed, and returns what they print.
    pub(super) fn ok(&self, cluster: &Cluster, node: &str, commands: &str) -> String {
        let output = self.run(cluster, node, commands);
        assert_eq!(output.code, 0, "{commands}{}{}", output.stdout, output.stderr);
        output.stdout
    }
}

/// Makes the machine of a node as it was before it had joined.
pub(super) fn wipe(cluster: &Cluster, node: &str) {
    cluster.sandbox(&format!("kill {node}"));
    for entry in std::fs::read_dir(cluster.data(node)).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
    }
}
