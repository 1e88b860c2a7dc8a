//! `ctl context …` manages what a user needs for talking to clusters from outside.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use crate::context::{Contexts, Credentials};
use crate::error::named;
use crate::printer::{self, line};

#[derive(Debug, Subcommand)]
pub(crate) enum Context {
    /// Take a file that `ctl swarm user add` has written
    Create {
        /// Name of the context
        name: String,
        /// File with the user's credentials; it may be removed afterwards
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
    },
    /// Make a context the one that later commands use
    Use {
        /// Name of the context; `default` for the local socket
        name: String,
    },
    /// List contexts
    Ls {
        #[command(flatten)]
        rows: printer::RowOptions,
    },
    /// Remove contexts, with their keys
    Rm {
        /// Names of the contexts
        names: Vec<String>,
    },
}

pub(crate) fn run(verb: Context) -> anyhow::Result<()> {
    let contexts = Contexts::of_user()?;
    match verb {
        Context::Create { name, from } => {
            let credentials = Credentials::read(&from)?;
            contexts.create(&name, &credentials)?;
            line(&name);
        }
        Context::Use { name } => {
            contexts.make_current(&name)?;
            line(&name);
        }
        Context::Ls { rows } => ls(&contexts, &rows)?,
        Context::Rm { names } => {
            named(&names)?;
            for name in names {
                contexts.remove(&name)?;
                line(&name);
            }
        }
    }
    Ok(())
}

fn ls(contexts: &Contexts, options: &printer::RowOptions) -> anyhow::Result<()> {
    options.check_filters(&["name", "user", "current"])?;
    let current = contexts.current()?;
    let mut rows = Vec::new();
    for name in contexts.names()? {
        // One that can't be read does not hide the others.
        let (user, managers, expires, error) = match contexts.get(&name) {
            Ok((_, it)) => {
                let expires = it.identity()?.validity.expires_at.to_string();
                (it.user, it.managers.join(","), expires, String::new())
            }
            Err(error) => (String::new(), String::new(), String::new(), format!("{error:#}")),
        };
        let is_current = current.as_ref() == Some(&name);
        let shown = if error.is_empty() { managers.clone() } else { error.clone() };
        let cells = vec![name.clone(), if is_current { "*" } else { "" }.into(), user.clone(), expires.clone(), shown];
        let object = json!({
            "id": name, "name": name, "current": is_current, "user": user, "expiresAt": expires, "managers": managers, "error": error,
        });
        if options.passes(&object) {
            rows.push((object, cells));
        }
    }
    printer::rows(options, &["NAME", "IN USE", "USER", "EXPIRES", "MANAGERS"], rows);
    Ok(())
}
