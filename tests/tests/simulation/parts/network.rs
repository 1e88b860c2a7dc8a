//! The simulated network.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use flota_identity::Peer;
use flota_tests::sim::host::Host;
use flota_tests::sim::time;
use flota_tests::sim::world::World;

const A: Host = Host(1);
const B: Host = Host(2);

/// Runs a test in a thread of its own, because a world changes the clock of its thread, and the harness needs the real
/// one.
fn on_its_own_thread(test: impl FnOnce() + Send + 'static) {
    if let Err(panic) = std::thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Creates a world in which B echoes every byte.
fn world_with_echo() -> World {
    let mut world = World::new(1);
    start_echo(&mut world);
    world
}

fn start_echo(world: &mut World) {
    let mut incoming = world.network.listen(B);
    world.start(B, async move {
        while let Some(Ok(connection)) = incoming.recv().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(connection);
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
}

/// State of A: the number of echoed bytes, and how its connection ended (0 while it is open).
#[derive(Default)]
struct Seen {
    echoes: AtomicU64,
    at: AtomicU64,
    ended: AtomicU64,
}

/// Makes A send a byte every 100 ms and count the echoes.
fn start_pinging(world: &mut World) -> Arc<Seen> {
    let seen = Arc::new(Seen::default());
    let (copy, connector) = (Arc::clone(&seen), world.network.connector(A, Peer::Local));
    world.start(A, async move {
        let connection = connector.connect(&B.address()).await;
        let Ok(mut connection) = connection else { return copy.ended.store(9, Ordering::SeqCst) };
        loop {
            let byte = async {
                connection.write_all(b"x").await?;
                connection.read_u8().await
            };
            match byte.await {
                Ok(_) => {
                    copy.echoes.fetch_add(1, Ordering::SeqCst);
                    copy.at.store(time::now(), Ordering::SeqCst);
                }
                Err(error) => {
                    let code = if error.kind() == io::ErrorKind::ConnectionReset { 1 } else { 2 };
                    return copy.ended.store(code, Ordering::SeqCst);
                }
            }
            time::sleep_until(time::now() + 100).await;
        }
    });
    seen
}

fn run(world: &mut World, millis: u64) {
    let until = world.now() + millis;
    while world.now() < until {
        world.step();
    }
}

#[test]
fn bytes_arrive_after_a_delay_in_both_directions() {
    on_its_own_thread(|| {
        let mut world = world_with_echo();
        let seen = start_pinging(&mut world);
        run(&mut world, 1_000);
        let echoes = seen.echoes.load(Ordering::SeqCst);
        assert!((8..=10).contains(&echoes), "{echoes} echoes in a second");
    });
}

#[test]
fn a_one_way_partition_holds_bytes_back_and_healing_delivers_them() {
    on_its_own_thread(|| {
        let mut world = world_with_echo();
        let seen = start_pinging(&mut world);
        run(&mut world, 500);
        world.network.block(B, A);
        run(&mut world, 1_000);
        let at = seen.at.load(Ordering::SeqCst);
        assert!(at <= 510, "an echo came through at {at}");
        world.network.heal_all();
        run(&mut world, 200);
        assert!(seen.at.load(Ordering::SeqCst) > 1_500);
        assert_eq!(seen.ended.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn a_crash_resets_connections_and_a_lost_machine_says_nothing_until_it_is_back() {
    on_its_own_thread(|| {
        let mut world = world_with_echo();
        let seen = start_pinging(&mut world);
        run(&mut world, 500);
        world.crash(B, true);
        run(&mut world, 5_000);
        assert_eq!(seen.ended.load(Ordering::SeqCst), 0, "no process is there to end it");
        start_echo(&mut world);
        run(&mut world, 100);
        assert_eq!(seen.ended.load(Ordering::SeqCst), 1, "the machine is back and does not know the connection");

        let mut world = world_with_echo();
        let seen = start_pinging(&mut world);
        run(&mut world, 500);
        world.crash(B, false);
        run(&mut world, 150);
        assert_eq!(seen.ended.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn connections_are_refused_where_no_process_listens() {
    on_its_own_thread(|| {
        let mut world = World::new(1);
        let seen = start_pinging(&mut world);
        run(&mut world, 50);
        assert_eq!(seen.ended.load(Ordering::SeqCst), 9);
    });
}

#[test]
fn a_paused_process_does_nothing_and_its_clock_jumps_when_it_goes_on() {
    on_its_own_thread(|| {
        let mut world = world_with_echo();
        let seen = start_pinging(&mut world);
        run(&mut world, 500);
        world.pause(A, true);
        let before = seen.echoes.load(Ordering::SeqCst);
        run(&mut world, 2_000);
        assert_eq!(seen.echoes.load(Ordering::SeqCst), before);
        world.pause(A, false);
        run(&mut world, 300);
        assert!(seen.at.load(Ordering::SeqCst) > 2_500 && seen.echoes.load(Ordering::SeqCst) <= before + 5);
    });
}
