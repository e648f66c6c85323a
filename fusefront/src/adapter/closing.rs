//! Closing files behind the back of those who closed them. The kernel does not wait for it, and what follows it (most often
//! the next file of the same program) is waited for: so a few threads close one file after the other, most often one,
//! and those that read requests stay with that.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::fs::Fs;
use crate::pool::Pool;

/// Handles that may wait, each with its descriptor. Whoever closes one more does so himself, and so makes no others meanwhile.
const WAITING_MAX: usize = 64;
/// Threads that close at a time: what was fsynced waits for the disk when it is closed, and is better off with others.
const SERVERS_MAX: usize = 4;
/// So many handles are waiting for each of them before there is another one.
const PER_SERVER: usize = 4;

/// Handles to be closed.
#[derive(Default)]
pub(super) struct Closing(Mutex<State>);

#[derive(Default)]
struct State {
    handles: VecDeque<u64>,
    /// Jobs of the pool that take them out.
    servers: usize,
}

impl Closing {
    /// Close it soon; `false` when too many are waiting already.
    pub fn close(self: &Arc<Self>, fs: &Arc<Fs>, pool: &Arc<Pool>, handle: u64) -> bool {
        let mut state = self.0.lock();
        if state.handles.len() >= WAITING_MAX {
            return false;
        }
        state.handles.push_back(handle);
        if state.servers < SERVERS_MAX && state.handles.len() > state.servers * PER_SERVER {
            state.servers += 1;
            drop(state);
            let (closing, fs, jobs) = (self.clone(), fs.clone(), pool.clone());
            pool.run(move || closing.serve(&fs, &jobs));
        }
        true
    }

    fn serve(&self, fs: &Arc<Fs>, pool: &Pool) {
        while let Some(handle) = self.next() {
            if fs.can_close_now() {
                // One that panics must not keep the others from being closed.
                let _reported = super::guarded(|| {
                    fs.release(handle);
                    Ok(())
                });
            } else {
                // All of them wait for the worker, and at the same time.
                let fs = fs.clone();
                pool.run(move || fs.release(handle));
            }
        }
    }

    fn next(&self) -> Option<u64> {
        let mut state = self.0.lock();
        let next = state.handles.pop_front();
        if next.is_none() {
            state.servers -= 1;
        }
        next
    }
}
