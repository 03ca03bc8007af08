//! Events from the devices' threads to whoever subscribed.
//!
//! Publishing never waits: each subscriber has a queue of its own, and one that is too slow is told how many it
//! missed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::event::Event;
use crate::waker::Waker;

/// Events kept for one subscriber.
const QUEUE: usize = 4096;

/// All subscribers.
#[derive(Default)]
pub(super) struct Hub {
    subscribers: Mutex<Vec<Weak<Subscription>>>,
}

/// What a subscriber wants to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    /// What happens.
    Events,
    /// That, and each time that a device is configured.
    Configuration,
}

/// One subscriber's queue; readable (as a file descriptor) when there is something in it.
pub(super) struct Subscription {
    queue: Mutex<Queue>,
    interest: Interest,
    waker: Waker,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    lost: u64,
}

impl Hub {
    /// Everything published from now on.
    pub(super) fn subscribe(&self, interest: Interest) -> io::Result<Arc<Subscription>> {
        let subscription = Arc::new(Subscription {
            queue: Mutex::default(),
            interest,
            waker: Waker::new()?,
        });
        lock(&self.subscribers).push(Arc::downgrade(&subscription));
        Ok(subscription)
    }

    pub(super) fn publish(&self, event: &Event) {
        lock(&self.subscribers).retain(|subscriber| match subscriber.upgrade() {
            Some(subscriber) => {
                if subscriber.wants(event) {
                    subscriber.push(event.clone());
                }
                true
            }
            None => false,
        });
    }
}

impl Subscription {
    fn wants(&self, event: &Event) -> bool {
        let is_configuration = matches!(event, Event::Configured { .. });
        !is_configuration || self.interest == Interest::Configuration
    }

    fn push(&self, event: Event) {
        let mut queue = lock(&self.queue);
        if queue.events.len() < QUEUE && queue.lost == 0 {
            queue.events.push_back(event);
        } else {
            queue.lost += 1;
        }
        drop(queue);
        self.waker.wake();
    }

    /// All that is there, in order; what was lost is told last.
    pub(super) fn take(&self) -> Vec<Event> {
        self.waker.clear();
        let mut queue = lock(&self.queue);
        let mut events: Vec<Event> = queue.events.drain(..).collect();
        let count = std::mem::take(&mut queue.lost);
        if count > 0 {
            events.push(Event::Lost { count });
        }
        events
    }
}

impl AsFd for Subscription {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: usize) -> Event {
        Event::DeviceCreated {
            interface: format!("wg{number}"),
        }
    }

    #[test]
    fn a_slow_subscriber_learns_how_much_it_missed_and_goes_on() {
        let hub = Hub::default();
        let subscription = hub.subscribe(Interest::Events).unwrap();
        for number in 0..QUEUE + 3 {
            hub.publish(&event(number));
        }
        let events = subscription.take();
        assert_eq!(events.len(), QUEUE + 1);
        assert_eq!(events.last(), Some(&Event::Lost { count: 3 }));

        hub.publish(&event(0));
        assert_eq!(subscription.take(), [event(0)]);
    }

    #[test]
    fn who_did_not_ask_is_not_told_of_configurations() {
        let hub = Hub::default();
        let [plain, watching] =
            [Interest::Events, Interest::Configuration].map(|each| hub.subscribe(each).unwrap());
        let configured = Event::Configured {
            interface: "wg0".into(),
        };
        hub.publish(&configured);
        hub.publish(&event(0));
        assert_eq!(plain.take(), [event(0)]);
        assert_eq!(watching.take(), [configured, event(0)]);
    }

    #[test]
    fn a_subscriber_that_left_is_forgotten() {
        let hub = Hub::default();
        drop(hub.subscribe(Interest::Events).unwrap());
        hub.publish(&event(0));
        assert!(lock(&hub.subscribers).is_empty());
    }
}
