//! Debian's docker-registry on a node of a sandbox, and images in its folder, as `docker push` would leave them there.

use std::fs;
use std::path::{Path, PathBuf};

use flota_tests::{Background, Cluster, programs};
use serde_json::{Value, json};

use crate::archives::tar;

fn hex(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The architecture of this machine, as images spell it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The images of one name.
pub(crate) struct Repository {
    root: PathBuf,
    name: String,
}

impl Repository {
    /// `dir` is the folder of the registry.
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        Self { root: dir.join("data/docker/registry/v2"), name: name.to_owned() }
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let hex = hex(bytes);
        self.write(&format!("blobs/sha256/{}/{hex}/data", &hex[..2]), bytes);
        self.write(
            &format!("repositories/{}/_layers/sha256/{hex}/link", self.name),
            format!("sha256:{hex}").as_bytes(),
        );
        json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len() })
    }

    fn document(&self, document: &Value) -> Value {
        let descriptor = self.blob(document["mediaType"].as_str().unwrap(), document.to_string().as_bytes());
        let link = digest_of(&descriptor);
        let revision = format!("repositories/{}/_manifests/revisions/{}/link", self.name, link.replace(':', "/"));
        self.write(&revision, link.as_bytes());
        descriptor
    }

    /// Puts an image with one layer there. Returns the descriptor of its manifest.
    pub(crate) fn image(&self, architecture: &str, layer: &[u8]) -> Value {
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar", layer);
        let config = json!({
            "architecture": architecture, "os": "linux", "config": { "Entrypoint": ["/whoami"] },
            "rootfs": { "type": "layers", "diff_ids": [] },
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer] });
        let mut descriptor = self.document(&manifest);
        descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
        descriptor
    }

    /// Puts an image of `whoami` for this machine there.
    pub(crate) fn whoami(&self) -> Value {
        let program = fs::read(programs().join("whoami")).unwrap();
        self.image(architecture(), &tar(&[("whoami", &program)]))
    }

    /// Puts an index of these manifests there.
    pub(crate) fn index(&self, manifests: &[Value]) -> Value {
        let media_type = "application/vnd.oci.image.index.v1+json";
        self.document(&json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests }))
    }

    /// Lets a tag stand for a manifest or an index. Returns its digest.
    pub(crate) fn tag(&self, tag: &str, document: &Value) -> String {
        let (link, tags) = (digest_of(document), format!("repositories/{}/_manifests/tags/{tag}", self.name));
        self.write(&format!("{tags}/current/link"), link.as_bytes());
        self.write(&format!("{tags}/index/{}/link", link.replace(':', "/")), link.as_bytes());
        link
    }
}

/// The digest in a descriptor.
pub(crate) fn digest_of(descriptor: &Value) -> String {
    descriptor["digest"].as_str().unwrap().to_owned()
}

/// Debian's docker-registry on a node's loopback, for the user `builder` with the password `letmein`.
pub(crate) fn registry(cluster: &Cluster, node: &str, dir: &Path) -> Background {
    // htpasswd, bcrypt.
    let user = "builder:$2b$05$abcdefghijklmnopqrstuuKwWV7ESJpzKzf9FQg57dBvMuv92X9HS\n";
    fs::write(dir.join("users"), user).unwrap();
    let settings = json!({
        "version": 0.1, "storage": { "filesystem": { "rootdirectory": dir.join("data") } },
        "http": { "addr": "127.0.0.1:5000" }, "auth": { "htpasswd": { "realm": "test", "path": dir.join("users") } },
    });
    let file = dir.join("settings.yml");
    fs::write(&file, settings.to_string()).unwrap();
    let running = cluster.background(node, &["docker-registry", "serve", &file.display().to_string()]);
    cluster.wait("the registry answers", |it| {
        let ask = format!("exec {node} -- curl -s -o /dev/null -w %{{http_code}} http://127.0.0.1:5000/v2/");
        it.sandbox(&ask).stdout.trim() == "401"
    });
    running
}

/// Gives the cluster the credentials for [`registry`].
pub(crate) fn log_in(cluster: &Cluster) {
    let login = "registry login --username builder --password-stdin localhost:5000";
    let logged_in = cluster.ctl_with_input(login, "letmein\n");
    assert_eq!(logged_in.code, 0, "{}", logged_in.stderr);
}
