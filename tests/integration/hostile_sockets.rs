//! Very many sockets that never get anywhere, and who gets in beside them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use strongroom_client::transport::RetryPolicy;
use strongroom_protocol::limits::STRANGER_SHARE;
use strongroom_protocol::route::Route;
use strongroom_server::refusals::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::harness::TestServer;
use crate::raw::{Raw, config_of, is_well, refused, request_of, stranger};

const SOCKETS: usize = 5000;
/// What everything else of this process opens.
const OTHER_FILES: usize = 2500;

/// 5000, or what the limit of open files leaves.
fn socket_count() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).unwrap();
    let files = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |files| files as usize);
    let count = SOCKETS.min(files.saturating_sub(OTHER_FILES));
    if count < SOCKETS {
        println!("only {count} sockets: the limit of open files is {files}");
    }
    assert!(count >= 100, "the limit of open files is {files}");
    count
}

/// Sockets that say a byte of a handshake now and then, and come again when they are closed.
struct Dribblers {
    stop: Arc<AtomicBool>,
    connected: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Dribblers {
    fn start(address: SocketAddr, count: usize) -> Self {
        let (stop, connected) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicUsize>::default());
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let (stop, connected) = (stop.clone(), connected.clone());
            tasks.spawn(async move {
                // Not all at once, and each every three seconds.
                tokio::time::sleep(Duration::from_millis((number as u64 * 7) % 3000)).await;
                while !stop.load(Ordering::SeqCst) {
                    if let Ok(socket) = TcpStream::connect(address).await {
                        connected.fetch_add(1, Ordering::SeqCst);
                        dribble(socket, &stop).await;
                    }
                    tokio::time::sleep(Duration::from_secs(3)).await;
                }
            });
        }
        Self { stop, connected, tasks }
    }

    async fn end(mut self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        self.connected.load(Ordering::SeqCst)
    }
}

async fn dribble(mut socket: TcpStream, stop: &AtomicBool) {
    // A record of 16 KiB, that is announced and never whole.
    for byte in [0x16, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb].into_iter().chain(std::iter::repeat(3)) {
        if stop.load(Ordering::SeqCst) || socket.write_all(&[byte]).await.is_err() {
            return;
        }
        let closed = tokio::time::timeout(Duration::from_millis(500), socket.read_u8()).await;
        if closed.is_ok() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_clients_get_in_and_commit_beside_thousands_of_dribbling_sockets() {
    let count = socket_count();
    let server = TestServer::start().await;
    let mut honest = server.writer("erp").await;
    honest.connect.retry = RetryPolicy::default();
    let limits = &server.repository.config().limits;
    let lobby = i64::from(limits.connections / STRANGER_SHARE);
    let dribblers = Dribblers::start(server.address, count);
    while dribblers.connected.load(Ordering::SeqCst) < count {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for number in 0..20 {
        // Each with connections of its own, from the flood's address.
        honest.snapshot("db", &[format!("commit {number}").as_bytes()]).await;
        let open = server.repository.metrics().connections.get();
        // Some were told to go and are just about to.
        assert!(open <= 2 * lobby, "{open} connections are held");
    }
    // From another address nobody is displaced: the crowd is elsewhere.
    for _ in 0..50 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let socket = socket.connect(server.address).await.unwrap();
        let mut raw = Raw::over(socket, &config_of(&honest)).await.unwrap();
        let answer = raw.ask(&request_of(&Route::Identity, b"")).await.unwrap();
        assert_eq!(answer.status, 200);
    }
    let connected = dribblers.end().await;
    assert!(connected >= count);
    let displaced = refused(&server, Reason::Displaced);
    assert!(displaced as usize + lobby as usize >= count, "{displaced} of {connected}");
    assert_eq!(refused(&server, Reason::TooManyConnections), 0);
    is_well(&server, &honest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_that_finish_their_handshakes_keep_nobody_out_either() {
    let server = TestServer::start_with(|config| config.limits.connections = 64).await;
    let honest = server.writer("erp").await;
    let lobby = 8;
    let mut strangers = Vec::new();
    let config = stranger();
    for number in 0..5 * lobby {
        let mut raw = Raw::open(server.address, &config).await.unwrap();
        let answer = raw.ask(&request_of(&Route::Identity, b"")).await.unwrap();
        assert_eq!(answer.status, 200, "{number}");
        strangers.push(raw);
        assert!(server.repository.metrics().connections.get() <= 2 * lobby);
    }
    honest.snapshot("db", &[b"beside strangers"]).await;
    for raw in strangers.iter_mut().take(4 * lobby as usize) {
        assert_eq!(raw.until_closed().await, b"", "the oldest have made room");
    }
    drop(strangers);
    is_well(&server, &honest).await;
}
