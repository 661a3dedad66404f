//! A server that has been captured: it runs our code, but some of its answers are lies.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use strongroom_client::error::{ClientError, ExitCode};
use strongroom_client::landing::Target;
use strongroom_client::restore::{self, RestoreOptions};
use strongroom_client::source::Source;
use strongroom_client::trust::ReadAccess;
use strongroom_protocol::id::{RecordDigest, SealedDigest};
use strongroom_protocol::route::Route;
use strongroom_server::handler::{Answer, Peer, binary, json};
use strongroom_server::listener::peer_of;
use strongroom_server::repository::Repository;
use strongroom_server::router::serve;
use strongroom_server::tls::server_config;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::harness::{TestServer, connect_to, unpack_dumps};

/// Which answers are lies.
#[derive(Default)]
pub struct Lies {
    /// Claims to have everything.
    has_all: AtomicBool,
    /// Flips a bit in the middle of what it reads back.
    pub flips: AtomicBool,
    /// Requests of type "prove" seen.
    proofs_asked: AtomicU32,
    /// Proves that the ledger contains a smaller one than was asked about.
    pub proves_less: AtomicBool,
    /// Path of the ledger tile in which it flips a bit.
    pub flipped_tile: Mutex<Option<String>>,
    /// Shown as every newer version of the namespace's descriptor.
    pub descriptor: Mutex<Option<Vec<u8>>>,
    /// Heads that clients reported.
    pub reported: Mutex<Vec<String>>,
    /// A checkpoint that it shows in the place of the newest.
    pub old_checkpoint: Mutex<Option<String>>,
    /// Envelopes that it says it does not have.
    pub withheld: Mutex<HashSet<SealedDigest>>,
    /// Records that it shows under digests.
    pub records: Mutex<HashMap<RecordDigest, Vec<u8>>>,
    /// Questions that [`Trick::SlowProof`] has not answered yet.
    pub held: AtomicU32,
    /// Requests for new keys that came while there were such questions.
    pub rolls_beside: AtomicU32,
    trick: Mutex<Option<Trick>>,
}

/// Answers that are no answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trick {
    /// The envelopes that were asked for, and others without end.
    EndlessEnvelopes,
    /// A byte now and then.
    DrippingEnvelopes,
    DrippingProof,
    /// Proofs and records without end.
    EndlessProof,
    EndlessRecord,
    /// Nothing at all.
    Silence,
    /// The last envelope is missing.
    FewerEnvelopes,
    /// Proofs come after a while.
    SlowProof,
    /// A request for new keys is carried out, and never answered.
    RollUnanswered,
    /// It is not even carried out.
    RollUnheard,
}

impl Lies {
    pub fn play(&self, trick: Option<Trick>) {
        *self.trick.lock().unwrap() = trick;
    }

    fn trick(&self) -> Option<Trick> {
        *self.trick.lock().unwrap()
    }
}

/// Serves a repository with the server's own keys and code, and lies.
pub async fn captured(repository: Arc<Repository>, lies: Arc<Lies>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(server_config(repository.keys()).unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (repository, lies) = (repository.clone(), lies.clone());
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let peer = peer_of(&stream).unwrap();
                let service = service_fn(|request| {
                    lie(repository.clone(), lies.clone(), peer.clone(), request)
                });
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

async fn lie(
    repository: Arc<Repository>,
    lies: Arc<Lies>,
    peer: Peer,
    request: Request<Incoming>,
) -> Result<Answer, strongroom_server::error::ServerError> {
    let route = Route::parse(request.method().as_str(), request.uri().path());
    match route {
        Some(Route::Have(..)) if lies.has_all.load(Ordering::SeqCst) => {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            binary(vec![1; body.len() / 32])
        }
        Some(Route::Prove(..)) if lies.has_all.load(Ordering::SeqCst) => {
            lies.proofs_asked.fetch_add(1, Ordering::SeqCst);
            let body = request.into_body().collect().await.unwrap().to_bytes();
            binary(vec![0x5a; body.len() - 32])
        }
        Some(Route::Read(_)) if lies.flips.load(Ordering::SeqCst) => {
            let answer = serve(repository, peer, request).await?;
            let mut bytes = answer.into_body().collect().await?.to_bytes().to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            binary(Bytes::from(bytes))
        }
        Some(Route::Consistency(size)) if lies.proves_less.load(Ordering::SeqCst) => {
            json(&repository.ledger().consistency(size - 1, None)?)
        }
        Some(Route::Tile(tile)) if is_flipped(&lies, &tile.path()) => {
            let answer = serve(repository, peer, request).await?;
            let mut bytes = answer.into_body().collect().await?.to_bytes().to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            binary(Bytes::from(bytes))
        }
        Some(Route::Descriptor(_)) if lies.descriptor.lock().unwrap().is_some() => {
            let is_first = request.uri().query() == Some("version=1");
            let shown = lies.descriptor.lock().unwrap().clone().filter(|_| !is_first);
            match shown {
                Some(descriptor) => binary(descriptor),
                None => serve(repository, peer, request).await,
            }
        }
        Some(Route::Record(_, digest)) if lies.records.lock().unwrap().contains_key(&digest) => {
            binary(lies.records.lock().unwrap()[&digest].clone())
        }
        Some(Route::ReportHead) => {
            let note = request.into_body().collect().await.unwrap().to_bytes();
            lies.reported.lock().unwrap().push(String::from_utf8(note.to_vec()).unwrap());
            binary(Bytes::new())
        }
        Some(route) => match trick(&repository, &lies, &peer, route, request).await {
            Ok(answer) => answer,
            Err(request) => serve(repository, peer, request).await,
        },
        None => serve(repository, peer, request).await,
    }
}

type Played = Result<Answer, strongroom_server::error::ServerError>;

/// Plays the trick under way, if it is about this route; else gives the request back.
async fn trick(
    repository: &Arc<Repository>,
    lies: &Lies,
    peer: &Peer,
    route: Route,
    request: Request<Incoming>,
) -> Result<Played, Request<Incoming>> {
    let old = lies.old_checkpoint.lock().unwrap().clone();
    let is_withholding = !lies.withheld.lock().unwrap().is_empty();
    match (route, lies.trick()) {
        (Route::Consistency(_), _) if old.is_some() => {
            let proof = strongroom_protocol::message::HexBytes(Vec::new());
            let checkpoint = old.unwrap();
            let answer = strongroom_protocol::message::ConsistencyAnswer { checkpoint, proof };
            Ok(json(&answer))
        }
        (Route::Read(namespace), _) if is_withholding => {
            let (parts, body) = request.into_parts();
            let bytes = body.collect().await.unwrap().to_bytes();
            drop(parts);
            let digests = strongroom_server::handler::digests_of(&bytes).unwrap();
            let withheld = lies.withheld.lock().unwrap().clone();
            if digests.iter().any(|digest| withheld.contains(digest)) {
                let error = strongroom_server::error::ServerError::not_found();
                return Ok(strongroom_server::handler::refused(error.refusal(), "0"));
            }
            Ok(binary(read_all(repository, namespace, &digests)))
        }
        (Route::Read(_), Some(Trick::EndlessEnvelopes)) => {
            let honest = serve(repository.clone(), peer.clone(), request).await;
            let first = honest.unwrap().into_body().collect().await.unwrap().to_bytes();
            Ok(Ok(streamed(first, Some(Duration::ZERO))))
        }
        (Route::Read(_), Some(Trick::FewerEnvelopes)) => {
            let (_, body) = request.into_parts();
            let bytes = body.collect().await.unwrap().to_bytes();
            let mut digests = strongroom_server::handler::digests_of(&bytes).unwrap();
            digests.pop();
            let Route::Read(namespace) = route else { unreachable!() };
            Ok(binary(read_all(repository, namespace, &digests)))
        }
        (Route::Read(_), Some(Trick::DrippingEnvelopes))
        | (Route::Consistency(_), Some(Trick::DrippingProof)) => {
            // The length of an envelope, and then what may be one.
            let piece = Bytes::from_static(&[0, 1, 0, 0]);
            Ok(Ok(streamed(piece, Some(Duration::from_millis(100)))))
        }
        (Route::Consistency(_), Some(Trick::EndlessProof))
        | (Route::Record(..), Some(Trick::EndlessRecord)) => {
            Ok(Ok(streamed(Bytes::from_static(&[b'1'; 8192]), None)))
        }
        (_, Some(Trick::Silence)) => std::future::pending().await,
        (route, Some(trick)) => {
            trick_with_keys(repository, lies, peer, (route, trick), request).await
        }
        _ => Err(request),
    }
}

/// The same, of tricks while keys roll over.
async fn trick_with_keys(
    repository: &Arc<Repository>,
    lies: &Lies,
    peer: &Peer,
    about: (Route, Trick),
    request: Request<Incoming>,
) -> Result<Played, Request<Incoming>> {
    match about {
        (Route::Consistency(_), Trick::SlowProof) => {
            lies.held.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(300)).await;
            lies.held.fetch_sub(1, Ordering::SeqCst);
        }
        (Route::RollKeys, Trick::SlowProof) => {
            let held = lies.held.load(Ordering::SeqCst);
            lies.rolls_beside.fetch_add(held, Ordering::SeqCst);
        }
        (Route::RollKeys, Trick::RollUnanswered) => {
            drop(serve(repository.clone(), peer.clone(), request).await.unwrap());
            return std::future::pending().await;
        }
        (Route::RollKeys, Trick::RollUnheard) => std::future::pending().await,
        _ => {}
    }
    Err(request)
}

fn read_all(
    repository: &Arc<Repository>,
    namespace: strongroom_protocol::id::NamespaceId,
    digests: &[SealedDigest],
) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut each = |envelope: &[u8]| {
        stream.extend_from_slice(&strongroom_protocol::frame::prefix(envelope).unwrap());
        stream.extend_from_slice(envelope);
        std::ops::ControlFlow::Continue(())
    };
    repository.read(&namespace, digests, &mut each).unwrap();
    stream
}

/// A body that never ends: the same piece again and again, with a pause where one is given.
fn streamed(piece: Bytes, pause: Option<Duration>) -> Answer {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        while sender.send(piece.clone()).await.is_ok() {
            tokio::time::sleep(pause.unwrap_or_default()).await;
        }
    });
    let body = strongroom_server::handler::AnswerBody::new(Pieces { receiver });
    hyper::Response::builder().body(body).unwrap()
}

struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = strongroom_server::error::ServerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.receiver.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

fn is_flipped(lies: &Lies, path: &str) -> bool {
    lies.flipped_tile.lock().unwrap().as_deref() == Some(path)
}

#[tokio::test(flavor = "multi_thread")]
async fn lying_server_is_caught() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, day1, _] = unpack_dumps(folder.path());
    writer.backup("db", &day0).await.unwrap();

    let lies = Arc::new(Lies::default());
    let address = captured(server.repository.clone(), lies.clone()).await;
    writer.connect = connect_to(address);
    lies.has_all.store(true, Ordering::SeqCst);

    // A stream cannot be read again: the run fails, and says what to do.
    let stream = Source::Stream(Box::new(std::fs::File::open(&day1).unwrap()));
    let error = writer.backup_from("db", stream).await.expect_err("the lie was believed");
    assert!(matches!(error, ClientError::Unproven(_)), "{error}");
    assert_eq!(error.exit_code(), ExitCode::Untrusted);
    assert!(lies.proofs_asked.load(Ordering::SeqCst) > 0);
    assert_eq!(server.repository.status().unwrap().snapshot_count, 1);

    // The next run asks nothing, sends everything, and is whole.
    let summary = writer.backup("db", &day1).await.unwrap();
    assert!(summary.distrusted);
    lies.has_all.store(false, Ordering::SeqCst);
    let access = ReadAccess::with_kit(&writer.kit(), &writer.connect, false).await.unwrap();
    let restored = folder.path().join("restored.sql");
    let options = RestoreOptions::to(Target::Path(restored.clone()));
    let monitor = strongroom_client::progress::Monitor::hidden();
    restore::restore(&access, summary.snapshot, &options, &monitor).await.unwrap();
    assert!(std::fs::read(&restored).unwrap() == std::fs::read(&day1).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_read_again_when_the_server_lied() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let lies = Arc::new(Lies::default());
    writer.connect = connect_to(captured(server.repository.clone(), lies.clone()).await);
    lies.has_all.store(true, Ordering::SeqCst);
    let summary = writer.backup("db", &day0).await.unwrap();
    assert!(summary.distrusted && summary.restart_count == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_never_reaches_a_restored_file() {
    let server = TestServer::start().await;
    let mut writer = server.writer("erp").await;
    let folder = tempfile::tempdir().unwrap();
    let [day0, ..] = unpack_dumps(folder.path());
    let summary = writer.backup("db", &day0).await.unwrap();
    let lies = Arc::new(Lies::default());
    let address = captured(server.repository.clone(), lies.clone()).await;
    lies.flips.store(true, Ordering::SeqCst);
    let access = ReadAccess::with_kit(&writer.kit(), &connect_to(address), false).await.unwrap();
    let restored = folder.path().join("restored.sql");
    let target = Target::Path(restored.clone());
    let options = RestoreOptions { unverified: true, ..RestoreOptions::to(target) };
    let monitor = strongroom_client::progress::Monitor::hidden();
    let restoring = restore::restore(&access, summary.snapshot, &options, &monitor);
    let error = restoring.await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Untrusted, "{error}");
    assert!(!restored.exists());
}
