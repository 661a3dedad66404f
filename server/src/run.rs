//! The composition root of a running server, and its orderly end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::TcpListener;

use crate::error::ServerError;
use crate::repository::Repository;
use crate::stop::{self, Stop};
use crate::{admin, feed, listener, probes, replica, scrub, tls};

/// How often silent sessions are ended and gauges refreshed.
const TICK: Duration = Duration::from_secs(5);

/// A server whose sockets are bound.
pub struct BoundServer {
    repository: Arc<Repository>,
    clients: TcpListener,
    probes: TcpListener,
    admin: tokio::net::UnixListener,
}

impl BoundServer {
    /// Binds the sockets of the configuration; port 0 takes a free one.
    pub async fn bind(
        repository: Arc<Repository>,
        folder: &std::path::Path,
    ) -> Result<Self, ServerError> {
        let config = repository.config();
        let bind = |address: SocketAddr| async move {
            let listener = TcpListener::bind(address).await;
            listener.map_err(|error| ServerError::file(format!("listen on {address}"), error))
        };
        let clients = bind(config.listen).await?;
        let probes = bind(config.metrics).await?;
        let admin = admin::bind(folder)?;
        Ok(Self { repository, clients, probes, admin })
    }

    /// Address of the listener for clients.
    pub fn client_address(&self) -> Result<SocketAddr, ServerError> {
        self.clients.local_addr().map_err(|error| ServerError::file("own address", error))
    }

    /// Address of the listener for probes.
    pub fn probe_address(&self) -> Result<SocketAddr, ServerError> {
        self.probes.local_addr().map_err(|error| ServerError::file("own address", error))
    }

    /// Serves until `until` ends, then finishes what is under way, within the configured bound.
    pub async fn serve(self, until: impl Future<Output = ()>) -> Result<(), ServerError> {
        let tls = tls::server_config(self.repository.keys())?;
        let (stopper, stopped) = stop::signal();
        let repository = self.repository;
        let probes = tokio::spawn(probes::run(repository.clone(), self.probes, stopped.clone()));
        let admin = tokio::spawn(admin::run(repository.clone(), self.admin, stopped.clone()));
        let ticker = tokio::spawn(tick(repository.clone(), stopped.clone()));
        let collection = tokio::spawn(collect(repository.clone(), stopped.clone()));
        let scrubbing = tokio::spawn(scrub_when_due(repository.clone(), stopped.clone()));
        let replication = tokio::spawn(replica::run(repository.clone(), stopped.clone()));
        let feeding = tokio::spawn(feed::run(repository.clone(), stopped.clone()));
        let rolling = tokio::spawn(replica::key_age::run(repository.clone(), stopped.clone()));
        let cycles = repository.writer().noted().clone();
        let clients = listener::run(repository.clone(), self.clients, tls, stopped);
        let clients = tokio::spawn(clients);
        tell_service_manager(NotifyState::Ready);
        until.await;
        tracing::info!("stopping");
        tell_service_manager(NotifyState::Stopping);

        stopper.stop();
        cycles.stop();
        repository.followers().stop();
        let services = [clients, probes, admin, ticker, collection, scrubbing];
        for task in services.into_iter().chain([replication, feeding, rolling]) {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task ended badly");
            }
        }
        let settled = tokio::task::spawn_blocking(move || repository.rest()).await;
        settled.map_err(|error| ServerError::Bug(error.to_string()))??;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Says how the service stands, to a service manager that wants to know (`NOTIFY_SOCKET`).
fn tell_service_manager(state: NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

/// Runs collection cycles on a thread of their own, one when it is due.
async fn collect(repository: Arc<Repository>, mut stop: Stop) {
    let collector = admin::collector(&repository);
    drop(repository);
    let finishing = collector.clone();
    let finished = on_own_thread("gc", move || finishing.finish_begun()).await;
    if let Err(error) = finished {
        tracing::error!(%error, "segments that are being dropped are still there");
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = stop.wait() => return,
        }
        let due = collector.clone();
        let cycle = move || if due.is_due()? { due.run().map(drop) } else { Ok(()) };
        match on_own_thread("gc", cycle).await {
            // The damage has had its alarm, where it was found.
            Err(error) if error.is_damage() => {
                tracing::warn!(%error, "nothing is swept until this is repaired");
            }
            Err(error) => {
                tracing::error!(%error, "ALARM: the cycle ended, nothing more was swept");
            }
            Ok(()) => {}
        }
    }
}

/// Hashes what is stored on a thread of its own, when it is due.
async fn scrub_when_due(repository: Arc<Repository>, mut stop: Stop) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = stop.wait() => return,
        }
        let due = repository.clone();
        if let Err(error) = on_own_thread("scrub", move || scrub::run_if_due(&due)).await {
            tracing::error!(%error, "ALARM: scrub ended early");
        }
    }
}

/// Runs `work` on a thread that is named for it, and waits.
async fn on_own_thread(
    name: &str,
    work: impl FnOnce() -> Result<(), ServerError> + Send + 'static,
) -> Result<(), ServerError> {
    let (sender, outcome) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || drop(sender.send(work())))
        .map_err(|error| ServerError::file(format!("start the {name} thread"), error))?;
    outcome.await.unwrap_or_else(|_| Err(ServerError::Bug(format!("the {name} thread panicked"))))
}

async fn tick(repository: Arc<Repository>, mut stop: Stop) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = stop.wait() => return,
        }
        let ticking = repository.clone();
        if tokio::task::spawn_blocking(move || ticking.tick()).await.is_err() {
            tracing::error!("tick ended badly");
        }
    }
}
