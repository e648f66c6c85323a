//! Closing files behind the back of those who closed them. The kernel does not wait for it, and what follows it (most often
//! the next file of the same program) is waited for: so one thread closes one file after the other, and the threads that
//! read requests stay with those.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::fs::Fs;
use crate::pool::Pool;

/// Handles that may wait, each with its descriptor. Whoever closes one more does so himself, and so makes no others meanwhile.
const WAITING_MAX: usize = 64;

/// Handles to be closed.
#[derive(Default)]
pub(super) struct Closing(Mutex<State>);

#[derive(Default)]
struct State {
    handles: VecDeque<u64>,
    /// Somebody takes them out.
    is_served: bool,
}

impl Closing {
    /// Close it soon; `false` when too many are waiting already.
    pub fn close(self: &Arc<Self>, fs: &Arc<Fs>, pool: &Pool, handle: u64) -> bool {
        let mut state = self.0.lock();
        if state.handles.len() >= WAITING_MAX {
            return false;
        }
        state.handles.push_back(handle);
        if !std::mem::replace(&mut state.is_served, true) {
            drop(state);
            let (closing, fs) = (self.clone(), fs.clone());
            pool.run(move || closing.serve(&fs));
        }
        true
    }

    fn serve(&self, fs: &Fs) {
        while let Some(handle) = self.next() {
            // One that panics must not keep the others from being closed.
            let _reported = super::guarded(|| {
                fs.release(handle);
                Ok(())
            });
        }
    }

    fn next(&self) -> Option<u64> {
        let mut state = self.0.lock();
        let next = state.handles.pop_front();
        state.is_served = next.is_some();
        next
    }
}
