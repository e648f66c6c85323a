//! Telling mounts what changed under them: one bounded queue per session.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use delugefs_proto::local_pb::{Changed, Event};
use parking_lot::{Condvar, Mutex};

use super::SessionId;

/// Events a slow frontend may be behind before it is told to drop everything instead.
const QUEUE_MAX: usize = 4096;

#[derive(Default)]
pub(super) struct Hub {
    sessions: Mutex<HashMap<SessionId, Arc<EventQueue>>>,
}

/// Events on their way to one session.
#[derive(Default)]
pub struct EventQueue {
    state: Mutex<State>,
    ready: Condvar,
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
            state.events.push_back(Event { seq: event.seq, changed: Vec::new(), all: true });
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

    /// Forget a session, unless it has connected again meanwhile.
    pub fn remove(&self, session: SessionId, queue: &Arc<EventQueue>) -> bool {
        let mut sessions = self.sessions.lock();
        let current = sessions.get(&session).is_some_and(|q| Arc::ptr_eq(q, queue));
        if current {
            sessions.remove(&session);
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
        for (session, queue) in &*self.sessions.lock() {
            if Some(*session) != from {
                queue.push(Event { seq, changed: changed.to_vec(), all: false });
            }
        }
    }

    pub fn close_all(&self) {
        self.sessions.lock().values().for_each(|queue| queue.close());
    }
}
