//! nginx, PostgreSQL and Redis as Debian packages them, in one image, on two nodes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use flota_tests::Cluster;

use crate::archives::{archive, tar};

const NGINX: &str = "daemon off; user root; pid /tmp/nginx.pid; error_log stderr; events {}
    http { access_log off; server { listen 80; location / { return 200 nginx; } } }";
/// Prepares what Debian's packages expect to be there, and becomes the server.
const WEB: &str = "mkdir -p /var/lib/nginx /var/log/nginx /tmp && exec nginx -c /etc/nginx.conf";
const CACHE: &str = "exec redis-server --save '' --protected-mode no --bind 0.0.0.0";
/// PostgreSQL refuses to run as root.
const DB: &str = "mkdir -p /data /tmp && chmod 1777 /tmp && chown postgres /data && exec su -s /bin/sh postgres -c '
    initdb -D /data -A trust --no-sync >/tmp/initdb && echo host all all all trust >>/data/pg_hba.conf &&
    exec postgres -D /data -c listen_addresses=* -c fsync=off -c unix_socket_directories=/tmp'";

/// Returns the folder of PostgreSQL's programs, whose name has the version.
fn postgres() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("postgresql is installed");
    let folders = versions.map(|it| it.expect("it is readable").path().join("bin"));
    folders.filter(|it| it.join("initdb").exists()).max().expect("postgresql is installed")
}

/// Returns the libraries of a program, as the dynamic linker finds them.
fn libraries(program: &Path) -> BTreeSet<String> {
    let output = Command::new("ldd").arg(program).output().expect("ldd comes with the C library");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(|word| word.trim_end_matches(':').into()).collect()
}

/// Writes an image of the servers and their clients; its path.
fn image(dir: &Path) -> String {
    let bin = postgres();
    let version = bin.ancestors().nth(1).and_then(Path::file_name).expect("it has a version").to_owned();
    let own = ["initdb", "postgres", "psql"].map(|name| bin.join(name));
    let others = ["/usr/sbin/nginx", "/usr/bin/redis-server", "/usr/bin/redis-cli"].map(PathBuf::from);
    let data = [Path::new("/usr/share/postgresql").join(&version), bin.with_file_name("lib/dict_snowball.so")];
    let data = data.into_iter().chain([bin.with_file_name("lib/plpgsql.so")]);
    let mut files: BTreeSet<String> = own.iter().chain(&others).flat_map(|program| libraries(program)).collect();
    files.extend(own.iter().chain(&others).cloned().chain(data).map(|path| path.display().to_string()));
    let layer = Command::new("tar").args(["-C", "/", "-chf", "-", "-P"]).args(&files).output().expect("tar exists");
    assert!(layer.status.success(), "{}", String::from_utf8_lossy(&layer.stderr));
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
    let users = b"root:x:0:0:root:/:/bin/sh\npostgres:x:70:70:postgres:/:/bin/sh\n";
    let groups = b"root:x:0:\npostgres:x:70:\n";
    let own = tar(&[
        ("bin/sh", &busybox),
        ("bin/busybox", &busybox),
        ("etc/passwd", users),
        ("etc/group", groups),
        ("etc/nginx.conf", NGINX.as_bytes()),
    ]);
    archive(dir, &["/bin/sh", "-c"], &[&layer.stdout, &own])
}

#[test]
fn servers_of_debian_reach_each_other_and_a_client_by_name_across_two_nodes() {
    let cluster = Cluster::bare(1, 2);
    let dir = tempfile::tempdir().expect("a temporary folder");
    cluster.ok(&format!("image import --tag servers {}", image(dir.path())));
    cluster.ok("network create front");
    let path = format!("PATH={}:/usr/sbin:/usr/bin:/bin", postgres().display());
    for (name, node, script) in
        [("web", "w1", WEB), ("db", "w2", DB), ("cache", "w1", CACHE), ("client", "w2", "exec busybox sleep 3600")]
    {
        let words = ["service", "create", "--name", name, "--network", "front", "--env", &path];
        let there = format!("node.hostname=={node}");
        let created = cluster.ctl_args(&[&words[..], &["--constraint", &there, "servers", script]].concat());
        assert_eq!(created.code, 0, "{name}: {}", created.stderr);
    }
    let questions: [(&str, &[&str], &str); 3] = [
        ("web", &["busybox", "wget", "-qO-", "http://web/"], "nginx"),
        ("db", &["psql", "-h", "db", "-U", "postgres", "-tAc", "select 40 + 2"], "42"),
        ("cache", &["redis-cli", "-h", "cache", "echo", "cached"], "cached"),
    ];
    for (server, question, answer) in questions {
        for client in ["web", "db", "cache", "client"] {
            let words = [&["exec", client, "--"], question].concat();
            cluster.wait(&format!("{server} answers {client}"), |it| it.ctl_args(&words).stdout.trim() == answer);
        }
    }
}
