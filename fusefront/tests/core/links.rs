//! Links to the worker: what is opened through one that is not up yet, and what becomes of one that never is.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use delugefs_fusefront::worker::Worker;
use delugefs_proto::local_pb::{Close, request};

use crate::fake::FakeWorker;

#[test]
fn what_was_given_back_is_closed_when_the_link_is_up() {
    let fake = FakeWorker::start();
    let worker = Worker::new(Path::new(&fake.socket));
    let (_failed, failed) = worker.connect().unwrap();
    let (_events, link) = worker.connect().unwrap();
    assert_ne!(failed.number, link.number, "the worker has numbers of its own for each");
    let close = request::Op::Close(Close { handle: 7, ..Close::default() });
    let waits = AtomicBool::new(false);
    let goes_on = || {
        waits.store(true, Ordering::SeqCst);
        true
    };
    let reply = std::thread::scope(|scope| {
        let closing = scope.spawn(|| worker.insist_through(link.number, &close, goes_on));
        while !waits.load(Ordering::SeqCst) && !closing.is_finished() {
            std::thread::yield_now();
        }
        worker.publish(&link);
        closing.join().unwrap()
    });
    assert!(reply.is_some(), "it was left out");
    // What is left of the other one nobody can ask for.
    let asked = AtomicU64::new(0);
    let reply = worker.insist_through(failed.number, &close, || asked.fetch_add(1, Ordering::SeqCst) == 0);
    assert!(reply.is_none() && asked.into_inner() == 0);
    assert_eq!(fake.count("close"), 1);
}
