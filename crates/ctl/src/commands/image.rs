//! `ctl image …` transfers images to the cluster, and manages those that the cluster keeps.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use serde_json::json;
use tokio_stream::wrappers::ReceiverStream;

use flota_api::model;
use flota_api::proto::control::{NameImageRequest, RemoveRequest};
use flota_api::proto::node::{ImageResult, ImageUpload, PullImageRequest};

use crate::client::{Client, failure, request_id};
use crate::commands::registry;
use crate::error::named;
use crate::printer::{self, ListOptions};
use crate::progress;

const CHUNK: usize = 1 << 20;
/// Time that the other nodes have to fetch the image.
const HOLD_WAIT: Duration = Duration::from_secs(120);

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Import an OCI layout or a `docker save` archive (tar, also with gzip or zstd; - for standard input)
    Import {
        /// Archive to read, or - for standard input
        file: PathBuf,
        /// Name of the image (default: the archive's)
        #[arg(short, long, default_value = "", hide_default_value = true)]
        tag: String,
    },
    /// Fetch an image from a registry; a manager uses the credentials of `ctl registry login`
    Pull {
        /// Name of the image, such as alpine:3.20 or registry.example/team/app@sha256:…
        reference: String,
        /// User name to log in with instead
        #[arg(short, long, requires = "password_stdin")]
        username: Option<String>,
        /// Read the password from standard input
        #[arg(long, requires = "username")]
        password_stdin: bool,
    },
    /// Make an image of one static program
    Pack {
        /// Name of the new image
        #[arg(short, long)]
        tag: String,
        /// Program to pack
        program: PathBuf,
    },
    /// List the images that the cluster keeps
    Ls(ListOptions),
    /// Remove images
    Rm {
        /// Images: name, digest, id, or beginning of an id
        images: Vec<String>,
        /// Remove also an image that a service uses
        #[arg(short, long)]
        force: bool,
    },
}

pub(crate) async fn run(verb: Image, client: &Client) -> anyhow::Result<()> {
    match verb {
        Image::Import { file, tag } => {
            let source: Box<dyn Read + Send> = match file.to_str() {
                Some("-") => Box::new(std::io::stdin()),
                _ => Box::new(fs_err::File::open(&file)?),
            };
            let frames = upload(source, tag, String::new());
            let image = client
                .any_node()
                .await?
                .0
                .import_image(frames)
                .await
                .map_err(failure)
                .context("failed to import the image")?;
            held(client, image.into_inner()).await
        }
        Image::Pack { tag, program } => {
            let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let frames = upload(Box::new(fs_err::File::open(&program)?), tag, name);
            let image = client.any_node().await?.0.pack_image(frames).await;
            let image = image.map_err(failure).context("failed to pack the program")?;
            held(client, image.into_inner()).await
        }
        Image::Pull { reference, username, password_stdin } => {
            let password = if password_stdin { registry::password()? } else { String::new() };
            let request = PullImageRequest { reference, username: username.unwrap_or_default(), password };
            let image =
                client.at_any_node(request, |mut node, request| async move { node.pull_image(request).await }).await?;
            held(client, image).await
        }
        Image::Ls(options) => ls(client, &options).await,
        Image::Rm { images, force } => {
            named(&images)?;
            for name in images {
                let request = RemoveRequest { request_id: request_id(), name: name.clone(), force };
                client
                    .change(request, |mut control, request| async move { control.remove_image(request).await })
                    .await?;
                printer::line(&name);
            }
            Ok(())
        }
    }
}

/// Returns a file as a stream of chunks, the first of which names it.
fn upload(mut source: Box<dyn Read + Send>, reference: String, program: String) -> ReceiverStream<ImageUpload> {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    std::thread::spawn(move || {
        let mut first = Some((reference, program));
        loop {
            let mut data = vec![0; CHUNK];
            let count = match source.read(&mut data) {
                Ok(count) => count,
                Err(error) => {
                    // The other side would take the end of the stream for the end of the file, so the connection is
                    // broken instead.
                    printer::message(&format!("error: failed to read the file to upload: {error}"));
                    #[expect(clippy::exit, reason = "it breaks the connection, and nothing else is left to do")]
                    std::process::exit(1);
                }
            };
            data.truncate(count);
            let named = first.take();
            if count == 0 && named.is_none() {
                return;
            }
            let (reference, program) = named.unwrap_or_default();
            if sender.blocking_send(ImageUpload { reference, program, data: data.into() }).is_err() || count == 0 {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// Gives an image that a node now holds its names, and waits until enough nodes hold it.
async fn held(client: &Client, image: ImageResult) -> anyhow::Result<()> {
    for reference in &image.references {
        let request = NameImageRequest {
            request_id: request_id(),
            reference: reference.clone(),
            digest: image.digest.clone(),
            size: image.size,
            node: image.node_id.clone(),
            platforms: image.platforms.clone(),
        };
        client.change(request, |mut control, request| async move { control.name_image(request).await }).await?;
    }
    for reference in &image.references {
        progress::image(client, reference, &image.digest, HOLD_WAIT).await?;
        printer::line(&format!("{reference} {}", image.digest));
    }
    Ok(())
}

async fn ls(client: &Client, options: &ListOptions) -> anyhow::Result<()> {
    let images = client
        .list(
            options.request(),
            |mut control, request| async move { control.list_images(request).await },
            |whole, page| whole.images.extend(page.images),
        )
        .await?;
    printer::age(images.header);
    let mut rows = Vec::new();
    for row in images.images {
        let (reference, image) = (row.reference, model::Image::from(row.image.unwrap_or_default()));
        let value = json!({
            "id": image.id, "reference": reference, "digest": image.digest,
            "size": image.size, "platforms": image.platforms,
            "holders": image.confirmed().collect::<Vec<_>>(), "createdAt": image.meta.created_at,
        });
        let size = format!("{:.1}MB", f64::from(u32::try_from(image.size / 1000).unwrap_or(u32::MAX)) / 1000.0);
        let digest: String =
            if options.rows.no_trunc { image.digest.clone() } else { image.digest.chars().take(19).collect() };
        rows.push((value, vec![reference, digest, size, image.confirmed().count().to_string()]));
    }
    rows.sort_by(|left, right| left.1[0].cmp(&right.1[0]));
    printer::rows(&options.rows, &["REFERENCE", "DIGEST", "SIZE", "NODES"], rows);
    Ok(())
}
