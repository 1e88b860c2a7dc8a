//! The flags for the variables of tasks. As in Docker, a name without a value stands
//! for the variable of the shell.

use std::path::PathBuf;

use clap::Args;

use flota_api::model::ServiceSpec;
use flota_stack::env_file;

/// The flags that `create` and `update` share.
#[derive(Debug, Default, Args)]
pub(crate) struct EnvFlags {
    /// Variable to set, NAME=value; NAME alone takes the shell's, or removes the image's if the shell has none; may be
    /// repeated; {{.Node.Hostname}} and the like are filled in
    #[arg(short, long, visible_alias = "env-add", value_name = "VARIABLE")]
    env: Vec<String>,
    /// File of variables to set, one NAME=value a line; may be repeated; --env comes after all files
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
}

impl EnvFlags {
    /// Sets the given variables in the spec and leaves the rest as it is.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> anyhow::Result<()> {
        self.apply_with(spec, &|name| std::env::var(name).ok())
    }

    fn apply_with(&self, spec: &mut ServiceSpec, shell: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<()> {
        let mut variables = Vec::new();
        for path in &self.env_file {
            variables.extend(env_file::read(path, shell)?);
        }
        variables.extend(self.env.iter().map(|variable| with_value(variable.clone(), shell)));
        for variable in variables {
            let name = variable.split('=').next().unwrap_or_default();
            spec.env.retain(|it| it.split('=').next() != Some(name));
            spec.env.push(variable);
        }
        Ok(())
    }
}

/// Returns the variable with the shell's value if it is a name alone. Without a value, a node removes what is there.
pub(super) fn with_value(variable: String, shell: &dyn Fn(&str) -> Option<String>) -> String {
    let value = if variable.contains('=') { None } else { shell(&variable) };
    value.map_or_else(|| variable.clone(), |value| format!("{variable}={value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_set_in_order_and_a_name_alone_takes_the_shells() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.env");
        std::fs::write(&file, "A=file\nB=file\nUSER\nNONE\n").expect("a file");
        let mut spec = ServiceSpec { env: vec!["B=old".into(), "Z=old".into()], ..ServiceSpec::default() };
        let shell = |name: &str| (name == "USER").then(|| "ada".to_owned());
        let env = ["A=mine", "USER", "UNSET", "EMPTY="].map(str::to_owned).to_vec();
        let flags = EnvFlags { env, env_file: vec![file.clone()] };
        flags.apply_with(&mut spec, &shell).expect("good flags");
        assert_eq!(spec.env, ["Z=old", "B=file", "A=mine", "USER=ada", "UNSET", "EMPTY="]);
        std::fs::write(&file, "A 1\n").expect("a file");
        let error = flags.apply_with(&mut spec, &shell).expect_err("it is no variable").to_string();
        assert!(error.ends_with("a.env:1: `A 1` is not a name of a variable"), "{error}");
    }
}
