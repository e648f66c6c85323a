//! gRPC that members call: every request comes on a connection whose key was checked.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use delugefs_proto::ids::ContentId;
use delugefs_proto::peer_pb::{self as pb, peer_server::Peer};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::io::PeerInfo;
use super::{Net, link, sync};
use crate::fetch::{LEAVING, read_content};

/// The service.
#[derive(Clone)]
pub(super) struct PeerService(pub Arc<Net>);

type Answer<T> = Result<Response<T>, Status>;

/// Who is calling. A connection that is to end is served no further.
fn caller<T>(request: &Request<T>) -> Result<PeerInfo, Status> {
    let info = request.extensions().get::<PeerInfo>().cloned();
    let info = info.ok_or_else(|| Status::unauthenticated("no key"))?;
    match info.token.is_cancelled() {
        true => Err(Status::permission_denied("no member any more")),
        false => Ok(info),
    }
}

fn stopping() -> Status {
    Status::unavailable("it is stopping")
}

#[tonic::async_trait]
impl Peer for PeerService {
    type MeetStream = tokio_stream::adapters::Map<ReceiverStream<pb::News>, fn(pb::News) -> Result<pb::News, Status>>;
    type FetchPackStream = ReceiverStream<Result<pb::FetchPackReply, Status>>;
    type ReadContentStream = ReceiverStream<Result<pb::ReadContentReply, Status>>;

    async fn meet(&self, request: Request<Streaming<pb::News>>) -> Answer<Self::MeetStream> {
        use tokio_stream::StreamExt;
        let info = caller(&request)?;
        let messages = link::opened(&self.0, info, request.into_inner());
        Ok(Response::new(ReceiverStream::new(messages).map(Ok)))
    }

    async fn fetch_pack(&self, request: Request<pb::FetchPackRequest>) -> Answer<Self::FetchPackStream> {
        let info = caller(&request)?;
        let place = self.0.exports.take(info.disk, false).await.ok_or_else(stopping)?;
        Ok(Response::new(ReceiverStream::new(sync::give(&self.0, info.disk, request.into_inner(), place))))
    }

    async fn read_content(&self, request: Request<pb::ReadContentRequest>) -> Answer<Self::ReadContentStream> {
        let info = caller(&request)?;
        let pace = match self.0.limits_for(info.disk, info.from.ip()) {
            Some(limits) => {
                let place = limits.places.take(info.disk, self.0.others().len() <= 1).await;
                Some((limits.up, place.ok_or_else(stopping)?))
            }
            None => None,
        };
        let place = self.0.reads.take(info.disk, false).await.ok_or_else(stopping)?;
        let net = self.0.clone();
        let asked = request.get_ref();
        let content = ContentId::from_slice(&asked.content).ok_or_else(|| Status::invalid_argument("no content id"))?;
        // Those who are to keep it show what they have, and not what they get from here.
        let Some(giving) = net.engine.store.give(content) else {
            return Err(Status::new(LEAVING, "it is about to let its copy go"));
        };
        let mut is_begun = false;
        let size = asked.size_bytes;
        let count = move |bytes| {
            net.given_bytes.fetch_add(bytes, Ordering::Relaxed);
            let (mut giving, now) = (net.giving.lock(), Instant::now());
            // With the first byte: what somebody says of a content that is not here is not shown.
            if !std::mem::replace(&mut is_begun, true) {
                giving.begin(content, size, info.disk, now);
            }
            giving.gave(content, bytes, now);
        };
        let net = self.0.clone();
        let failed = move |content| net.suspect(info.disk, content);
        let places = (place, pace, giving);
        Ok(Response::new(ReceiverStream::new(read_content(&self.0.engine, request.get_ref(), places, count, failed)?)))
    }

    async fn promise(&self, request: Request<pb::PromiseRequest>) -> Answer<pb::PromiseReply> {
        caller(&request)?;
        let fetcher = self.0.fetcher.get().and_then(std::sync::Weak::upgrade);
        let fetcher = fetcher.ok_or_else(|| Status::unavailable("it is starting or stopping"))?;
        Ok(Response::new(fetcher.promise(request.get_ref()).await?))
    }

    async fn report_corrupt(&self, request: Request<pb::ReportCorruptRequest>) -> Answer<pb::ReportCorruptReply> {
        let info = caller(&request)?;
        let content = ContentId::from_slice(&request.get_ref().content);
        self.0.suspect(info.disk, content.ok_or_else(|| Status::invalid_argument("no content id"))?);
        Ok(Response::new(pb::ReportCorruptReply {}))
    }

    async fn verify(&self, request: Request<pb::VerifyRequest>) -> Answer<pb::VerifyReply> {
        caller(&request)?;
        let content = ContentId::from_slice(&request.get_ref().content);
        let content = content.ok_or_else(|| Status::invalid_argument("no content id"))?;
        Ok(Response::new(pb::VerifyReply { whole: self.0.is_whole(content).await }))
    }
}
