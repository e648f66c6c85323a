//! The thread that keeps the link to the worker: it reads the pushed events, and when their connection ends it makes a
//! new link; and the one that ends it when the worker hangs. The first owns the state "up or down"; everybody else only looks.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use delugefs_proto::local::client::Client;
use delugefs_proto::local_pb::Welcome;
use parking_lot::{Condvar, Mutex};

use crate::fs::Fs;
use crate::worker::NewLink;

/// Pause before the second try to connect; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Longest pause between tries: a worker that comes back should not wait long for us.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// The running threads. [`Events::stop`] ends them.
pub struct Events {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Default)]
struct State {
    stop: bool,
    socket: Option<Arc<UnixStream>>,
}

impl Events {
    /// Make the first link and keep it. What the worker said of itself is given back, or why it cannot be reached.
    pub fn start(fs: Arc<Fs>) -> io::Result<(Self, Welcome)> {
        let shared = Arc::<Shared>::default();
        let (client, link) = shared.link(&fs)?;
        let welcome = link.welcome.clone();
        fs.worker.publish(&link);
        let named = |name: &str| std::thread::Builder::new().name(name.into());
        let mut threads = Vec::new();
        if let Some(pause) = fs.worker.suspicion() {
            let (shared, fs) = (shared.clone(), fs.clone());
            threads.push(named("pulse").spawn(move || shared.feel(&fs, pause))?);
        }
        let keeping = shared.clone();
        threads.push(named("events").spawn(move || keeping.keep(&fs, client, link.number))?);
        Ok((Self { shared, threads }, welcome))
    }

    /// End the link for good, and with it the session. What is still open is the worker's to look after.
    pub fn stop(self) {
        {
            let mut state = self.shared.state.lock();
            state.stop = true;
            if let Some(socket) = &state.socket {
                // Fails only if the connection is gone already.
                let _gone = socket.shutdown(Shutdown::Both);
            }
        }
        self.shared.stopped.notify_all();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("the events thread panicked; this is a bug in delugefs-fusefront");
            }
        }
    }
}

impl Shared {
    /// Connect, and give the worker back what is open.
    fn link(&self, fs: &Fs) -> io::Result<(Client, NewLink)> {
        let (client, link) = fs.worker.connect()?;
        fs.link_up(&link, &mut fs.worker.connect_to(&link)?).map_err(|lost| lost.0)?;
        let mut state = self.state.lock();
        if state.stop {
            return Err(io::Error::other("stopping"));
        }
        state.socket = Some(client.socket());
        Ok((client, link))
    }

    fn keep(&self, fs: &Fs, mut client: Client, mut number: u64) {
        loop {
            let end = loop {
                match client.next_event() {
                    Ok(Some(event)) => fs.event(number, &event),
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            };
            fs.worker.take_down();
            if self.state.lock().stop {
                return;
            }
            tracing::warn!(error = ?end, "lost the diskworker; waiting for it to come back");
            let Some((new, link)) = self.reconnect(fs) else { return };
            fs.worker.publish(&link);
            fs.link_was_lost();
            tracing::info!("the diskworker is back");
            (client, number) = (new, link.number);
        }
    }

    /// Look now and then whether the worker hangs, while somebody waits for it, and give it up for another one.
    fn feel(&self, fs: &Fs, pause: Duration) {
        loop {
            {
                let mut state = self.state.lock();
                if !state.stop {
                    self.stopped.wait_for(&mut state, pause);
                }
                if state.stop {
                    return;
                }
            }
            let Some(link) = fs.worker.is_waited_for() else { continue };
            if fs.worker.hangs(|| !self.state.lock().stop) && fs.worker.desert(link) {
                tracing::warn!("the diskworker hangs");
                if let Some(socket) = &self.state.lock().socket {
                    // The thread that keeps the link sees its end. Fails only if it is gone already.
                    let _gone = socket.shutdown(Shutdown::Both);
                }
            }
        }
    }

    /// Try until it works; `None` when told to stop.
    fn reconnect(&self, fs: &Fs) -> Option<(Client, NewLink)> {
        let mut pause = PAUSE_MIN;
        loop {
            match self.link(fs) {
                Ok(linked) => return Some(linked),
                Err(error) => tracing::debug!(%error, "no diskworker yet"),
            }
            let mut state = self.state.lock();
            if !state.stop {
                self.stopped.wait_for(&mut state, pause);
            }
            if state.stop {
                return None;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}
