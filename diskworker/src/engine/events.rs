//! Telling mounts what changed under them: one bounded queue per session.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use delugefs_proto::limits::FRAME_MAX_BYTES;
use delugefs_proto::local_pb::{Changed, Event};
use parking_lot::{Condvar, Mutex};
use prost::Message;

use super::SessionId;

/// Events a slow frontend may be behind before it is told to drop everything instead.
const QUEUE_MAX: usize = 4096;

/// The longest mountpoint that is remembered.
const MOUNT_MAX_BYTES: usize = 4096;

#[derive(Default)]
pub(super) struct Hub {
    sessions: Mutex<HashMap<SessionId, Arc<EventQueue>>>,
    /// Where those are mounted that said so.
    mounts: Mutex<HashMap<SessionId, Vec<u8>>>,
}

/// Events on their way to one session.
#[derive(Default)]
pub struct EventQueue {
    state: Mutex<State>,
    ready: Condvar,
}

/// Everything may have changed.
fn all(seq: u64) -> Event {
    Event { seq, all: true, ..Event::default() }
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    closed: bool,
}

impl EventQueue {
    fn push(&self, event: Event) {
        let mut state = self.state.lock();
        if state.events.len() >= QUEUE_MAX {
            state.events.clear();
            state.events.push_back(all(event.seq));
        } else {
            state.events.push_back(event);
        }
        self.ready.notify_one();
    }

    /// The next event; `None` once the session has ended.
    pub fn next(&self) -> Option<Event> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(event) = state.events.pop_front() {
                return Some(event);
            }
            self.ready.wait(&mut state);
        }
    }

    /// Wake the waiting thread for good.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.ready.notify_all();
    }
}

impl Hub {
    pub fn add(&self, session: SessionId) -> Arc<EventQueue> {
        let queue = Arc::<EventQueue>::default();
        if let Some(old) = self.sessions.lock().insert(session, queue.clone()) {
            old.close();
        }
        queue
    }

    /// A session's frontend has said where it is mounted.
    pub fn is_mounted(&self, session: SessionId, dir: &[u8]) {
        if !dir.is_empty() && dir.len() <= MOUNT_MAX_BYTES {
            self.mounts.lock().insert(session, dir.to_vec());
        }
    }

    /// All that were said.
    pub fn mounts(&self) -> Vec<Vec<u8>> {
        self.mounts.lock().values().cloned().collect()
    }

    /// Forget a session, unless it has connected again meanwhile.
    pub fn remove(&self, session: SessionId, queue: &Arc<EventQueue>) -> bool {
        let mut sessions = self.sessions.lock();
        let current = sessions.get(&session).is_some_and(|q| Arc::ptr_eq(q, queue));
        if current {
            sessions.remove(&session);
            self.mounts.lock().remove(&session);
        }
        current
    }

    pub fn has(&self, session: SessionId) -> bool {
        self.sessions.lock().contains_key(&session)
    }

    pub fn len(&self) -> usize {
        self.sessions.lock().len()
    }

    /// Whether anybody but this session listens.
    pub fn has_others(&self, session: Option<SessionId>) -> bool {
        self.sessions.lock().keys().any(|s| Some(*s) != session)
    }

    /// Send to all but the session that made the change.
    pub fn send(&self, from: Option<SessionId>, seq: u64, changed: &[Changed]) {
        let mut event = Event { seq, changed: changed.to_vec(), all: false, here: from.is_some() };
        if event.encoded_len() > FRAME_MAX_BYTES {
            // No frame can carry it, and a connection that ends costs the mounts more than asking for everything again.
            event = all(seq);
        }
        for (session, queue) in &*self.sessions.lock() {
            if Some(*session) != from {
                queue.push(event.clone());
            }
        }
    }

    pub fn close_all(&self) {
        self.sessions.lock().values().for_each(|queue| queue.close());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_forgotten_with_its_session() {
        let hub = Hub::default();
        let queue = hub.add(1);
        hub.is_mounted(1, b"/m");
        hub.is_mounted(1, &[b'/'; MOUNT_MAX_BYTES + 1]);
        hub.add(2);
        hub.is_mounted(2, b"");
        assert_eq!(hub.mounts(), [b"/m"]);
        assert!(hub.remove(1, &queue));
        assert!(hub.mounts().is_empty());
    }

    #[test]
    fn what_no_frame_can_carry_becomes_everything() {
        let hub = Hub::default();
        let queue = hub.add(1);
        let named = |count: usize| {
            let names = (0..count).map(|n| format!("{n:0100}").into()).collect();
            [Changed { dir: 1, names, inos: vec![] }]
        };
        let (few, many) = (named(10_000), named(50_000));
        for (seq, changed) in [(1, &few), (2, &many), (3, &few)] {
            hub.send(None, seq, changed);
            let event = queue.next().unwrap();
            assert!(event.encoded_len() <= FRAME_MAX_BYTES);
            assert_eq!((event.seq, event.all, event.changed.is_empty()), (seq, seq == 2, seq == 2));
        }
    }
}
