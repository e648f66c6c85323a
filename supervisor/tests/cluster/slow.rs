//! A line that is slow and loses packets. There is no netem everywhere, so this is a wire in user space: a TUN device in
//! each of two hosts, and threads that carry packets from one to the other, some of them never, all of them later.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::libc;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep_until};

use super::lab::Lab;
use super::stories::{bytes, wait_for_content};
use super::wait_for;
use crate::e2e::Random;

/// One way.
const DELAY: Duration = Duration::from_millis(20);
/// Of 1000 packets so many are lost.
const LOST: u64 = 20;
/// Packets on the wire; more are lost, as in a router.
const WIRE_MAX: usize = 1000;
/// Larger than usual: TCP's rate under loss is so many packets a second, and this test is to end soon.
const MTU: &str = "9000";

nix::ioctl_write_ptr_bad!(tunsetiff, nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()), libc::ifreq);

/// A new TUN device, in the network of this process.
fn tun(name: &str) -> std::io::Result<AsyncFd<File>> {
    let tun = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags: flags };
    let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the descriptor is open, and the kernel reads an ifreq, which lives until after the call.
    #[allow(unsafe_code)]
    unsafe { tunsetiff(tun.as_raw_fd(), &request) }?;
    // SAFETY: the file belongs to what is made of it here, and is closed with it.
    #[allow(unsafe_code)]
    Ok(unsafe { AsyncFd::register(tun) }?)
}

/// See the module. It ends when it is dropped, and the devices with it.
struct Wire {
    _carriers: Runtime,
    lost: Arc<AtomicU32>,
}

impl Wire {
    /// In place of the cables of the first two hosts. `None`, with the reason printed, where this cannot be.
    fn between(lab: &Lab, seed: u64) -> Option<Self> {
        let carriers = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let inside = carriers.enter();
        let mut ends = Vec::new();
        for at in [0, 1] {
            let host = &lab.hosts[at];
            // Made here, and down: nothing is sent before it is in the host's network.
            let name = format!("t{at}-{}", std::process::id());
            let end = match tun(&name) {
                Ok(end) => Arc::new(end),
                Err(error) => {
                    println!("skipped: it needs /dev/net/tun: {error}");
                    return None;
                }
            };
            host.take_device(&name);
            host.ip(&["link", "set", "eth0", "down"]);
            host.ip(&["addr", "flush", "dev", "eth0"]);
            host.ip(&["addr", "add", &format!("10.77.0.{}/24", at + 1), "dev", &name]);
            host.ip(&["link", "set", &name, "mtu", MTU, "up"]);
            ends.push(end);
        }
        let lost = Arc::<AtomicU32>::default();
        for (from, to) in [(0, 1), (1, 0)] {
            let random = Random::new(seed.wrapping_add(from as u64));
            tokio::spawn(carry(ends[from].clone(), ends[to].clone(), random, lost.clone()));
        }
        drop(inside);
        Some(Self { _carriers: carriers, lost })
    }
}

/// One direction.
async fn carry(from: Arc<AsyncFd<File>>, to: Arc<AsyncFd<File>>, mut random: Random, lost: Arc<AtomicU32>) {
    let mut wire: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut packet = vec![0; 1 << 16];
    loop {
        let due = wire.front().map(|(due, _)| *due);
        tokio::select! {
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let (_, packet) = wire.pop_front().unwrap();
                let _ = to.get_ref().write(&packet); // lost when the other end is not up
            }
            ready = from.readable() => {
                let Ok(mut ready) = ready else { return };
                let length = match ready.try_io(|from| from.get_ref().read(&mut packet)) {
                    Ok(Ok(length)) => length,
                    Ok(Err(_)) => return, // the device is gone
                    Err(_) => continue,
                };
                if random.below(1000) < LOST || wire.len() >= WIRE_MAX {
                    lost.fetch_add(1, Ordering::Relaxed);
                } else {
                    wire.push_back((Instant::now() + DELAY, packet[..length].into()));
                }
            }
        }
    }
}

#[test]
fn a_line_that_is_slow_and_loses_packets_is_enough() {
    let Some(mut lab) = Lab::new(2) else { return };
    let seed = Random::seed();
    println!("DELUGEFS_E2E_SEED={seed}");
    let Some(wire) = Wire::between(&lab, seed) else { return lab.finish(&[]) };
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    let token = lab.hosts[0].invite();
    lab.hosts[1].start("d", &["--join", &token, "--no-mdns"]);
    lab.wait_for_peers(&[0, 1], 1);
    for (from, to) in [(0, 1), (1, 0)] {
        for number in 0..20 {
            let name = format!("small-{from}-{number}");
            fs::write(lab.hosts[from].file(&name), bytes(100 + number * 5000)).unwrap();
        }
        for number in 0..20 {
            let name = format!("small-{from}-{number}");
            wait_for_content(&lab, &lab.hosts[to].file(&name), &bytes(100 + number * 5000));
        }
    }
    // Read while it comes, and copied because two are wanted: whichever is first.
    let content = bytes(20 << 20);
    fs::write(lab.hosts[0].file("large"), &content).unwrap();
    wait_for_content(&lab, &lab.hosts[1].file("large"), &content);
    wait_for("two copies", || lab.logs(), || lab.hosts[0].copies("large") == 2);
    lab.wait_for_one_catalog(&[0, 1]);
    for host in &lab.hosts {
        let (code, text) = host.says(&["scrub"]);
        assert_eq!(code, 0, "{text}\n{}", lab.logs());
    }
    let lost = wire.lost.load(Ordering::Relaxed);
    println!("{lost} packets were lost");
    assert!(lost > 0);
    lab.finish(&[]);
}
