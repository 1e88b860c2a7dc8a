//! From the landing before to this one, node by node, by the page in deploy/runbooks.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flota_tests::{Cluster, programs};

use super::recovery::containers;
use super::runbook::Runbook;
use super::traffic::{Traffic, create_web};

const NODES: [&str; 5] = ["m1", "m2", "m3", "w1", "w2"];

/// The machines of a cluster, each with programs of its own.
struct Machines<'a> {
    cluster: &'a Cluster,
    page: &'a Runbook,
    replace: String,
    look: String,
}

impl Machines<'_> {
    /// The folder with the programs of a node.
    fn bin(&self, node: &str) -> PathBuf {
        self.page.folder.path().join(node)
    }

    /// Does on a node what the page says, with the programs in `from`.
    fn install(&self, node: &str, from: &Path) {
        let bin = self.bin(node);
        std::fs::create_dir_all(&bin).unwrap();
        // Stands for systemd, which these machines do not have.
        let shim = self.page.folder.path().join("bin/systemctl");
        let (ctl, name) = (bin.join("ctl"), self.cluster.name());
        let (ctl, stop) = (ctl.display(), format!("sandbox stop --daemon-only --name {name} {node}"));
        let script = format!(
            "#!/bin/sh -e\n[ \"$*\" = 'restart flotad' ]\n{ctl} {stop}\n{ctl} sandbox start --name {name} {node}\n"
        );
        std::fs::create_dir_all(shim.parent().unwrap()).unwrap();
        std::fs::write(&shim, script).unwrap();
        std::fs::set_permissions(&shim, std::fs::Permissions::from_mode(0o755)).unwrap();
        let commands = self.replace.replace("NEW", &from.display().to_string());
        self.page.ok(self.cluster, node, &commands.replace("BIN", &bin.display().to_string()));
        self.cluster.wait("all nodes are ready again", |it| {
            it.ctl("node ls").code == 0 && it.rows("node ls --filter state=ready").len() == NODES.len()
        });
        self.page.ok(self.cluster, "m1", &self.look);
    }
}

#[test]
#[ignore = "it needs the programs of the landing before, which `make test-long` builds"]
fn upgrade() {
    let old =
        PathBuf::from(std::env::var("FLOTA_PREVIOUS").expect("tests/previous.sh builds them and prints their folder"));
    let (new, page) = (programs(), Runbook::open("upgrade.md"));
    let [backup, look, see] = <[String; 3]>::try_from(page.blocks("manager")).expect("three blocks");
    let [replace] = <[String; 1]>::try_from(page.blocks("machine")).expect("one block");
    let cluster = Cluster::up_from(&old, 3, 2);
    create_web(&cluster, 4, &["--health-tcp", "80"]);
    assert_eq!(cluster.ctl_with_input("secret create key -", "hidden").code, 0);
    cluster.ok("service create --name held --secret key --constraint node.role==worker --mount type=volume,source=data,target=/data whoami");
    let machines = Machines { cluster: &cluster, page: &page, replace, look };
    let mut traffic = Traffic::start(&cluster);
    let before = NODES.map(|node| containers(&cluster, node));
    page.ok(&cluster, "m1", &backup);
    // Taken back in the middle, on a manager and on a worker, and then to the end.
    let steps =
        NODES.map(|node| (node, &new)).into_iter().chain([("m2", &old), ("w1", &old), ("m2", &new), ("w1", &new)]);
    for (node, from) in steps {
        traffic.step(&format!("{node} gets {}", from.display()));
        machines.install(node, from);
    }
    assert!(page.ok(&cluster, "m1", &see).contains("web"));
    assert_eq!(NODES.map(|node| containers(&cluster, node)), before, "no container was restarted");
    traffic.assert_none_failed();

    // What only this build knows raises the level, and what the one before knew as well still works.
    cluster.ok("swarm update --cert-renewal-grace 9600h");
    cluster.ok("swarm update --autolock");
    cluster.wait("all managers have sealed their keys", |it| {
        ["m1", "m2", "m3"].iter().all(|node| it.data(node).join("locked").exists())
    });
    cluster.ok("service update --force web");
}
