//! The signal that ends all tasks of a server.

use tokio::sync::watch;

/// Ends the waiting of every [`Stop`].
pub struct Stopper(watch::Sender<bool>);

/// Waits for the end; cheap to clone.
#[derive(Clone)]
pub struct Stop(watch::Receiver<bool>);

/// A signal that has not been given yet.
pub fn signal() -> (Stopper, Stop) {
    let (sender, receiver) = watch::channel(false);
    (Stopper(sender), Stop(receiver))
}

impl Stopper {
    /// Gives the signal.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Whether the signal was given, or can no longer be given.
    pub fn is_given(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Waits until the signal is given, or can no longer be given.
    pub async fn wait(&mut self) {
        drop(self.0.wait_for(|stop| *stop).await);
    }
}
