//! Tasks that name no network.

use super::*;

fn without_networks(id: &str) -> Assignment {
    Assignment { task_id: id.into(), ..Assignment::default() }
}

/// Attaches a task, and returns its address of IPv4. That of IPv6 follows from it.
fn attach(pair: &mut Pair, view: &View, id: &str) -> IpAddr {
    let attached = pair.node(0).attach(view, &without_networks(id)).unwrap();
    assert_eq!(attached.sockets.len(), 2, "its DNS server");
    let TaskNetwork::Joined { addresses, .. } = attached.network else { panic!("it has a namespace") };
    assert_eq!(addresses.len(), 2);
    addresses[0]
}

#[test]
fn a_task_without_networks_reaches_the_outside_but_neither_a_guarded_port_nor_another_network() {
    let mut pair = Pair::start();
    let mut update = view().to_update();
    update.networks.iter_mut().for_each(|it| it.internal = false);
    let mut view = View::default();
    view.apply(update);
    pair.program(0, &view);
    pair.node(0).attach(&view, &task(0)).unwrap();
    attach(&mut pair, &view, TASKS[1]);
    let (joined, plain) = (task(0), without_networks(TASKS[1]));
    pair.node(0).program(&view, &[&joined, &plain], &mut Touched::default()).unwrap();
    let [neighbour, inside] = TASKS.map(|it| pair.namespace(0, it));
    let outside = pair.add_host("client", 9);
    let listen = |at: &Namespace, port: u16| at.enter(|| Ok(TcpListener::bind(("0.0.0.0", port)))).unwrap().unwrap();
    let connect =
        |to: IpAddr, port: u16| inside.enter(|| Ok(TcpStream::connect_timeout(&(to, port).into(), PATIENCE))).unwrap();
    let server = listen(&outside, 80);
    connect([198, 18, 77, 9].into(), 80).unwrap();
    assert_eq!(server.accept().unwrap().1.ip(), address(0), "the node's address stands for it");
    let second = options(pair.dir.path(), 1).host;
    let _manager = listen(&second, 2377);
    let guarded = connect(address(1).into(), 2377).unwrap_err();
    assert_eq!(guarded.kind(), std::io::ErrorKind::ConnectionRefused);
    // No network tells this node of a manager without tasks.
    let _elsewhere = listen(&outside, 2377);
    connect([198, 18, 77, 9].into(), 2377).unwrap();
    pair.node(0).set_managers(BTreeSet::from([[198, 18, 77, 9].into()]));
    pair.node(0).program(&view, &[&joined, &plain], &mut Touched::default()).unwrap();
    let guarded = connect([198, 18, 77, 9].into(), 2377).unwrap_err();
    assert_eq!(guarded.kind(), std::io::ErrorKind::ConnectionRefused);
    let _neighbour = listen(&neighbour, 80);
    let quick = |to: IpAddr| {
        let patience = Duration::from_millis(300);
        inside.enter(|| Ok(TcpStream::connect_timeout(&(to, 80).into(), patience))).unwrap().is_ok()
    };
    assert!(!quick(host_address(0)), "the task of another network can't be reached");
}

#[test]
fn the_address_of_a_task_without_networks_outlives_the_daemon_and_is_freed_with_the_task() {
    let mut pair = Pair::start();
    let view = view();
    let [first, second] = TASKS.map(|it| attach(&mut pair, &view, it));
    assert_ne!(first, second);
    let subnet = pair.node(0).facts().subnet;
    drop(pair.nodes[0].take());
    pair.start_node(0);
    assert_eq!((pair.node(0).facts().subnet, subnet.is_some()), (subnet, true));
    let third = attach(&mut pair, &view, NETWORK);
    assert!(third != first && third != second, "both are still taken");
    pair.node(0).adopt(&view, &without_networks(TASKS[0]), &Vec::new()).unwrap();
    assert!(reaches(&pair.namespace(0, NETWORK), &pair.namespace(0, TASKS[0]), first));
    for id in [TASKS[0], TASKS[1], NETWORK] {
        pair.node(0).detach(&id.into(), None).unwrap();
        assert_eq!(pair.node(0).bridge.as_ref().unwrap().addresses(&id.into()), Vec::<IpAddr>::new());
    }
    pair.node(0).remove_all().unwrap();
    assert!(!pair.dir.path().join("0").exists());
}

#[test]
fn the_subnet_of_tasks_without_networks_is_none_of_the_nodes_networks() {
    let mut pair = Pair::start();
    let mut update = view().to_update();
    update.networks[0].subnets[0].prefix = "172.17.5.0/24".parse().unwrap();
    let mut view = View::default();
    view.apply(update);
    let reported = |pair: &mut Pair| pair.node(0).facts().subnet.map(|it| it.to_string());
    assert_eq!(reported(&mut pair).as_deref(), Some("172.17.0.0/16"));
    attach(&mut pair, &view, TASKS[0]);
    assert_eq!(reported(&mut pair).as_deref(), Some("172.18.0.0/16"));
}
