//! Making the worker known to its host's supervisor, and again whenever that one has been restarted.

use std::path::PathBuf;
use std::time::Duration;

use delugefs_proto::control_pb::{RegisterRequest, control_client::ControlClient};
use delugefs_proto::disk::DiskToml;
use delugefs_proto::rundir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Pause between tries, and between looking whether the supervisor is still the one that knows us.
const PAUSE: Duration = Duration::from_secs(2);

/// Register, and register again after each restart of the supervisor. Never returns; works without a supervisor.
pub async fn keep_registered(
    run_dir: PathBuf,
    identity: DiskToml,
    root: PathBuf,
    sockets: (String, String),
    tcp_port: u16,
) {
    let request = RegisterRequest {
        root: root.canonicalize().unwrap_or(root).display().to_string(),
        disk_id: identity.disk_id,
        cluster: identity.cluster,
        cluster_id: identity.cluster_id,
        pid: std::process::id(),
        tcp_port: tcp_port.into(),
        local_socket: sockets.0,
        grpc_socket: sockets.1,
    };
    let mut connection = None;
    loop {
        match register(&run_dir, &request, connection.take()).await {
            // Registering again is harmless, and the only way to notice a supervisor that has been replaced.
            Ok(client) => connection = Some(client),
            Err(error) => tracing::debug!("no supervisor yet: {error:#}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The connection, to be used again: one that ends is one with a supervisor that has ended.
async fn register(
    run_dir: &std::path::Path,
    request: &RegisterRequest,
    connection: Option<ControlClient<Channel>>,
) -> anyhow::Result<ControlClient<Channel>> {
    let mut client = match connection {
        Some(client) => client,
        None => ControlClient::new(connect(&rundir::control_socket(run_dir)).await?),
    };
    let mut request = tonic::Request::new(request.clone());
    request.set_timeout(PAUSE);
    client.register(request).await?;
    Ok(client)
}

/// A channel to the supervisor's socket.
///
/// # Errors
/// When nobody answers there.
pub async fn connect(path: &std::path::Path) -> anyhow::Result<Channel> {
    let path = path.to_owned();
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://supervisor").connect_timeout(PAUSE);
    Ok(endpoint.connect_with_connector(connect).await?)
}
