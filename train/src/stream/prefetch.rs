//! The thread that reads ahead.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

/// An iterator that runs on a thread of its own, one item ahead of the reader.
///
/// Three items exist at most: the reader's, the one that waits (the channel holds one), and the one being made.
pub struct Prefetch<T> {
    receiver: Option<Receiver<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Starts `items` on a thread; dropping the result stops it after the item being made.
    pub fn new(items: impl Iterator<Item = T> + Send + 'static) -> Self {
        let (sender, receiver) = sync_channel(1);
        let thread = std::thread::spawn(move || {
            for item in items {
                if sender.send(item).is_err() {
                    return;
                }
            }
        });
        Self { receiver: Some(receiver), thread: Some(thread) }
    }
}

impl<T> Prefetch<T> {
    fn join(&mut self) {
        self.receiver = None;
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl<T> Iterator for Prefetch<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let item = self.receiver.as_ref().and_then(|receiver| receiver.recv().ok());
        if item.is_none() {
            self.join();
        }
        item
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_ahead_keeps_the_order_and_stops_when_dropped() {
        let made = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = made.clone();
        let items = (0..).inspect(move |_| {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        });
        let mut ahead = Prefetch::new(items);
        assert_eq!(ahead.by_ref().take(5).collect::<Vec<i32>>(), [0, 1, 2, 3, 4]);
        drop(ahead);
        let made = made.load(std::sync::atomic::Ordering::SeqCst);
        assert!((5..=8).contains(&made), "{made} items made for 5 read");
    }
}
