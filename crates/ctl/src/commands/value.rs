//! `ctl secret …` and `ctl config …` manage secrets and configs.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value as Json, json};

use flota_api::model::{AnyValue, VALUE_BOUND, ValueKind, ValueSpec};
use flota_api::proto::control::{
    CreateValueRequest, GetValueRequest, ListValuesRequest, RemoveValueRequest, UpdateValueRequest, ValueRow, Values,
};

use crate::client::{Client, request_id};
use crate::error::{Usage, named};
use crate::printer::{self, ListOptions};
use crate::{parse, terminal};

#[derive(Debug, Subcommand)]
pub(crate) enum Value {
    /// Create one from a file or from standard input
    Create(CreateValue),
    /// Make a new version, and give it to the services that follow the newest one
    Update(UpdateValue),
    /// List them, without what they hold
    Ls(ListOptions),
    /// Print everything about them but the value of a secret, with the services that use them
    Inspect {
        /// Names, ids, or beginnings of ids
        names: Vec<String>,
        /// Print a page for people
        #[arg(long)]
        pretty: bool,
    },
    /// Remove those that nothing uses
    Rm {
        /// Names, ids, or beginnings of ids
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateValue {
    /// Label, KEY=VALUE; may be repeated
    #[arg(long, value_parser = parse::label)]
    label: Vec<(String, String)>,
    /// Fill in the templates in it for each task
    #[arg(long, value_name = "DRIVER", value_parser = ["golang"])]
    template_driver: Option<String>,
    /// Name of the secret or config
    name: String,
    /// File with the value; `-` for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateValue {
    /// Keep the services on the version that they have
    #[arg(long)]
    no_roll: bool,
    /// Secret or config: name, id, or beginning of an id
    name: String,
    /// File with the value; `-` for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
}

/// Reads a value; one byte more than the bound is enough to refuse it.
fn read(source: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(VALUE_BOUND as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns the value in a file, or on standard input.
pub(super) fn value_of(file: &Path) -> anyhow::Result<Vec<u8>> {
    let what = file.display();
    let bytes = if file == Path::new("-") {
        if terminal::is_there() {
            return Err(
                Usage("the value comes from a file or from standard input, and that is a terminal".into()).into()
            );
        }
        read(std::io::stdin().lock())
    } else {
        std::fs::File::open(file).and_then(read)
    };
    let bytes = bytes.map_err(|error| Usage(format!("failed to read {what}: {error}")))?;
    if bytes.len() > VALUE_BOUND {
        return Err(Usage(format!("{what}: a value has at most {VALUE_BOUND} bytes (500 KiB)")).into());
    }
    Ok(bytes)
}

pub(crate) async fn run(verb: Value, kind: ValueKind, client: &Client) -> anyhow::Result<()> {
    match verb {
        Value::Create(CreateValue { label, template_driver, name, file }) => {
            let (labels, template) = (label.into_iter().collect(), template_driver.is_some());
            let spec = ValueSpec { name: name.clone(), labels, template };
            let bytes = value_of(&file)?.into();
            let (kind, spec) = (kind.to_wire(), Some((&spec).into()));
            let request = CreateValueRequest { request_id: request_id(), kind, spec, bytes };
            client.change(request, |mut control, request| async move { control.create_value(request).await }).await?;
            printer::line(&name);
        }
        Value::Update(UpdateValue { no_roll, name, file }) => {
            let (bytes, kind) = (value_of(&file)?.into(), kind.to_wire());
            let request = UpdateValueRequest { request_id: request_id(), kind, name: name.clone(), bytes, no_roll };
            let updated =
                client.change(request, |mut control, request| async move { control.update_value(request).await });
            let services = updated.await?.services;
            printer::line(&name);
            if !services.is_empty() {
                printer::message(&format!("these services get the new version: {}", services.join(", ")));
            }
        }
        Value::Ls(options) => ls(client, kind, &options).await?,
        Value::Inspect { names, pretty } => {
            named(&names)?;
            let mut found = Vec::new();
            for name in names {
                let request = GetValueRequest { kind: kind.to_wire(), name };
                let read = client.read(request, |mut control, request| async move { control.get_value(request).await });
                found.push(whole(read.await?)?);
            }
            printer::objects(found, pretty);
        }
        Value::Rm { names } => {
            named(&names)?;
            for name in names {
                let request = RemoveValueRequest { request_id: request_id(), kind: kind.to_wire(), name: name.clone() };
                client
                    .change(request, |mut control, request| async move { control.remove_value(request).await })
                    .await?;
                printer::line(&name);
            }
        }
    }
    Ok(())
}

fn parsed(row: &ValueRow) -> anyhow::Result<AnyValue> {
    let value = row.value.clone().ok_or_else(|| anyhow::anyhow!("the manager's answer lacks its object"))?;
    Ok(AnyValue::try_from(value)?)
}

/// Returns the object with its users; a config with its data, as text if it is one.
fn whole(row: ValueRow) -> anyhow::Result<Json> {
    let mut value = serde_json::to_value(parsed(&row)?)?;
    value["services"] = json!(row.services);
    if let Some(bytes) = row.bytes {
        match std::str::from_utf8(&bytes) {
            Ok(text) => value["data"] = json!(text),
            Err(_) => value["dataBytes"] = json!(bytes.to_vec()),
        }
    }
    Ok(value)
}

async fn ls(client: &Client, kind: ValueKind, options: &ListOptions) -> anyhow::Result<()> {
    let request = ListValuesRequest { kind: kind.to_wire(), list: Some(options.request()) };
    let values: Values = client
        .list(
            request,
            |mut control, request| async move { control.list_values(request).await },
            |whole, page| whole.values.extend(page.values),
        )
        .await?;
    printer::age(values.header);
    let mut rows = Vec::new();
    for row in values.values {
        let value = parsed(&row)?;
        let newest = value.newest().cloned().unwrap_or_default();
        let shown = json!({
            "id": value.id, "name": value.spec.name, "labels": value.spec.labels, "version": newest.number,
            "size": newest.size, "services": row.services, "stackId": value.stack_id,
        });
        let cells =
            vec![value.spec.name.clone(), newest.number.to_string(), newest.size.to_string(), row.services.join(" ")];
        rows.push((shown, cells));
    }
    rows.sort_by(|left, right| left.1[0].cmp(&right.1[0]));
    printer::rows(&options.rows, &["NAME", "VERSION", "BYTES", "SERVICES"], rows);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_up_to_its_bound_and_one_that_is_longer_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("value");
        for (size, is_good) in [(1, true), (VALUE_BOUND, true), (VALUE_BOUND + 1, false), (VALUE_BOUND * 3, false)] {
            std::fs::write(&path, vec![7; size]).expect("it can be written");
            let read = value_of(&path);
            assert_eq!(read.is_ok(), is_good, "{size}");
            if let Ok(bytes) = read {
                assert_eq!(bytes.len(), size);
            }
        }
        assert!(value_of(&dir.path().join("none")).is_err());
    }

    #[test]
    fn the_data_of_a_config_is_shown_as_text_if_it_is_one() {
        let row = |bytes: Option<&[u8]>| ValueRow {
            value: Some((&AnyValue::default()).into()),
            bytes: bytes.map(|it| it.to_vec().into()),
            ..ValueRow::default()
        };
        assert_eq!(whole(row(Some(b"a: 1\n"))).expect("good")["data"], "a: 1\n");
        assert_eq!(whole(row(Some(&[255]))).expect("good")["dataBytes"], json!([255]));
        let secret = whole(row(None)).expect("good");
        assert!(secret.get("data").is_none() && secret.get("dataBytes").is_none(), "{secret}");
    }
}
