//! The worker's life, in order: open the disk, recover, serve, stop.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use delugefs_proto::exit::{Exit, UserError};
use delugefs_proto::ids::ClusterId;
use delugefs_proto::worker_pb::worker_server::WorkerServer;
use delugefs_proto::{disk, rundir};
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::catalog::CatalogError;
use crate::cli::Cli;
use crate::engine::{self, Placer, Running, Settings};
use crate::fetch::{Fetcher, Goes};
use crate::folder::DiskFolder;
use crate::journal::JournalError;
use crate::net::{self, Net, NetSettings};
use crate::serve::neighbours::Neighbours;
use crate::serve::{AllowedUids, grpc, local};
use crate::swarm::Swarm;

/// How long requests under way at the end may take.
const GRACE: Duration = Duration::from_secs(5);

/// Run until told to stop.
pub fn run(cli: &Cli) -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() && !cli.allow_root {
        let error =
            UserError::new(Exit::NotPermitted, "a diskworker needs no rights of root, and does not run with them");
        return Err(error.hint("run it as the user who owns the disk's folder, or say --allow-root").into());
    }
    // Descriptors: one per connection, pack and open file.
    raise_descriptor_limit();
    rundir::prepare(&cli.run_dir).map_err(|e| UserError::new(Exit::NotPermitted, e.to_string()))?;
    let folder = Arc::new(open_folder(cli)?);
    tracing::info!("disk {} of cluster {} at {}", short(&folder), cli.cluster, cli.root.display());

    net::check_members(&folder)?;

    let settings = Settings { reserve_bytes: cli.reserve_bytes, retention: Duration::from_secs(cli.retention_s) };
    let running = Running::start(folder.clone(), settings).map_err(cannot_use)?;
    tracing::info!("recovered");

    let swarm = Arc::new(Swarm::start(running.engine.store.clone()).unwrap_or_else(|error| {
        tracing::error!("no torrents until the next start: {error:#}");
        Swarm::absent()
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(serve(cli, &folder, &running, swarm.clone()));
    runtime.shutdown_timeout(GRACE);
    swarm.shutdown();
    running.stop()?;
    tracing::info!("stopped cleanly");
    served
}

fn open_folder(cli: &Cli) -> anyhow::Result<DiskFolder> {
    if !disk::is_cluster_name(&cli.cluster) {
        let text = format!("{:?} is not a cluster name: use letters, digits, '-', '_' and '.'", cli.cluster);
        return Err(UserError::new(Exit::Usage, text).into());
    }
    let id = match &cli.cluster_id {
        None => None,
        Some(hex) => Some(ClusterId::from_hex(hex).ok_or_else(|| {
            UserError::new(Exit::Usage, format!("--cluster-id {hex:?}: a cluster id has 32 hex digits"))
        })?),
    };
    if cli.create {
        return DiskFolder::create_with(&cli.root, &cli.cluster, id, engine::make_catalog);
    }
    let folder = DiskFolder::open(&cli.root, Some(&cli.cluster))?;
    match id {
        Some(id) if id != folder.cluster_id() => {
            let (root, name) = (cli.root.display(), &cli.cluster);
            let text = format!("the cluster of the disk {root} has the same name, {name}, but is another cluster");
            Err(UserError::new(Exit::WrongCluster, text).hint(disk::own_supervisor(name, &cli.root)).into())
        }
        _ => Ok(folder),
    }
}

/// What the exit code of a failed start is.
fn cannot_use(error: anyhow::Error) -> anyhow::Error {
    let exit = match (error.downcast_ref::<CatalogError>(), error.downcast_ref::<JournalError>()) {
        (Some(CatalogError::Newer { .. }), _) | (_, Some(JournalError::Newer { .. })) => Exit::NewerFormat,
        (Some(CatalogError::NotACatalog(_)), _) => Exit::NoDisk,
        _ => Exit::BadDisk,
    };
    let hint = match exit {
        Exit::NewerFormat => "install the newest delugefs on this host, then run the same command",
        Exit::NoDisk => "is it the right folder?",
        _ => {
            "what it holds is in ROOT/data, named by its SHA-256. Where other disks have copies: `delugefs disk add NEWROOT --create` makes \
            a disk in its place, and `delugefs disk forget DISK` has the others make up for this one"
        }
    };
    UserError::new(exit, "this disk cannot be used").because(error).hint(hint).into()
}

fn short(folder: &DiskFolder) -> &str {
    disk::short_id(&folder.identity().disk_id)
}

async fn serve(cli: &Cli, folder: &DiskFolder, running: &Running, swarm: Arc<Swarm>) -> anyhow::Result<()> {
    let allowed = AllowedUids::new(&cli.allow_uids);
    let local_path = rundir::local_socket(&cli.run_dir, short(folder));
    let grpc_path = rundir::grpc_socket(&cli.run_dir, short(folder));

    let settings = NetSettings {
        listen: cli.listen.clone(),
        port: cli.btport,
        last_port: cli.last_port,
        lazy: cli.lazy,
        site: cli.site.clone(),
        limits: (cli.upload_limit.unwrap_or(0), cli.download_limit.unwrap_or(0)),
        run_dir: cli.run_dir.clone(),
    };
    let net = Net::start(running.engine.clone(), swarm.clone(), settings).await.map_err(|error| {
        let hint = match &cli.listen {
            Some(address) => {
                format!("is {address} an address of this machine? And is another port free (--btport PORT)?")
            }
            None => "choose another port with --btport PORT".into(),
        };
        UserError::new(Exit::InUse, format!("no network: {error:#}")).hint(hint)
    })?;

    // What comes and goes while this disk is looked through, to be told afterwards.
    let meanwhile = Arc::new(Mutex::new(Some(Vec::new())));
    running.engine.store.watch({
        let (holder, meanwhile) = (Arc::downgrade(&net), meanwhile.clone());
        Box::new(move |content, held| match (&mut *meanwhile.lock(), holder.upgrade()) {
            (Some(changes), _) => changes.push((content, held)),
            (None, Some(net)) => net.holding_changed(content, held),
            (None, None) => {}
        })
    });
    let recalled = tokio::task::spawn_blocking({
        let net = net.clone();
        move || {
            net.recall_holdings();
            let mut meanwhile = meanwhile.lock();
            meanwhile.take().into_iter().flatten().for_each(|(content, held)| net.holding_changed(content, held));
        }
    });
    recalled.await?;
    let runtime = tokio::runtime::Handle::current();
    let fetcher = Fetcher::new(running.engine.clone(), swarm.clone(), net.clone(), runtime);
    net.serve_contents(&fetcher);

    let neighbours = Arc::new(Neighbours::new(net.clone(), cli.run_dir.clone()));
    running.engine.place_with({
        let (engine, neighbours) = (Arc::downgrade(&running.engine), neighbours.clone());
        let net = Arc::downgrade(&net);
        Placer {
            give: {
                let (engine, neighbours) = (engine.clone(), neighbours.clone());
                Box::new(move |content, size, file| neighbours.place(&*engine.upgrade()?, content, size, file))
            },
            has_room: Box::new(move || engine.upgrade().is_some_and(|engine| neighbours.has_room(&engine))),
            following: Box::new(move |disk| net.upgrade().map(|net| net.following(disk)).unwrap_or_default()),
        }
    });
    let listener = bind(&local_path)?;
    let engine = running.engine.clone();
    let shutdown = CancellationToken::new();
    let accepting = {
        let (listener, allowed, fetcher) = (listener.try_clone()?, allowed.clone(), fetcher.clone());
        let stop = shutdown.clone();
        std::thread::Builder::new()
            .name("accept".into())
            .spawn(move || local::serve(&engine, &fetcher, &neighbours, &listener, &allowed, &stop))?
    };

    let goes = if cli.lazy { Goes::Copies } else { Goes::LeftOvers };
    tokio::spawn(fetcher.clone().keep_room(goes, shutdown.clone()));
    let sockets = (local_path.display().to_string(), grpc_path.display().to_string());
    let grpc_listener = bind(&grpc_path)?;
    grpc_listener.set_nonblocking(true)?;
    let incoming = grpc::admitted(tokio::net::UnixListener::from_std(grpc_listener)?, allowed.clone());
    let service = grpc::WorkerService::new(
        running.engine.clone(),
        swarm,
        net.clone(),
        fetcher.clone(),
        allowed,
        sockets.clone(),
        shutdown.clone(),
    );
    let service = WorkerServer::new(service).max_decoding_message_size(grpc::REQUEST_MAX_BYTES);
    let stop = shutdown.clone();
    let server = tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, async move { stop.cancelled().await }),
    );

    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    println!("ready {} {} {}", folder.identity().disk_id, sockets.0, sockets.1);
    let registering = (!cli.no_register).then(|| {
        tokio::spawn(crate::register::keep_registered(
            cli.run_dir.clone(),
            folder.identity().clone(),
            cli.root.clone(),
            sockets.clone(),
            net.port(),
        ))
    });

    tokio::select! {
        _ = term.recv() => tracing::info!("told to stop by SIGTERM"),
        _ = int.recv() => tracing::info!("told to stop by SIGINT"),
        () = shutdown.cancelled() => tracing::info!("told to stop by a request"),
    }
    if let Some(task) = registering {
        task.abort();
    }
    shutdown.cancel();
    net.shutdown();
    if let Err(error) = net.remember_holdings() {
        tracing::warn!("what other disks hold is not written down: {error}");
    }
    // Unblocks accept(2); the sessions are ended by the engine's stop.
    nix::sys::socket::shutdown(std::os::fd::AsRawFd::as_raw_fd(&listener), nix::sys::socket::Shutdown::Both).ok();
    for path in [&local_path, &grpc_path] {
        std::fs::remove_file(path).ok();
    }
    if accepting.join().is_err() {
        tracing::error!("the accepting thread had panicked");
    }
    match tokio::time::timeout(GRACE, server).await {
        Ok(result) => result.context("the gRPC server had panicked")?.context("serving gRPC"),
        Err(_) => Ok(()), // a request that takes longer is cut off
    }
}

/// A socket at this path, in place of one that a dead process left. The disk's lock makes us the only owner.
fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("making the socket {}", path.display()))?;
    // Who may call is decided by the caller's uid, not by the mode.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let want = hard.min(65_536);
        if soft < want && setrlimit(Resource::RLIMIT_NOFILE, want, hard).is_err() {
            tracing::warn!("cannot raise the limit of open files above {soft}");
        }
    }
}
