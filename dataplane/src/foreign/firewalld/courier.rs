//! The thread between the dataplane and the bus: it looks, publishes what it saw, and carries out orders.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::time;

use super::{
    Order, Shared,
    bus::{Address, Bus, BusError},
    service::Service,
};
use crate::reconciler::chain;

/// For how long signals are gathered before firewalld is looked at.
const GATHER: Duration = Duration::from_millis(50);

/// How many times longer it is left alone than the last look took, and how long at most, however many signals
/// come.
const SHARE: u32 = 10;
const REST: Duration = Duration::from_secs(1);

/// After how long a firewalld that did not answer is asked again.
const AGAIN: Duration = Duration::from_secs(10);

/// How long a bus that is not reached is left alone: at first, and at most.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Runs for as long as the bus is there and somebody is interested.
pub(super) fn run(shared: &Shared, address: &Address) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(stay_connected(shared, address)),
        Err(error) => tracing::warn!(%error, "firewalld cannot be asked"),
    }
    shared.end();
}

async fn stay_connected(shared: &Shared, address: &Address) {
    let mut pause = PAUSE;
    while address.is_there() && !shared.is_over() {
        let began = Instant::now();
        let reason = match Bus::connect(address).await {
            Ok(bus) => serve(shared, &bus).await,
            Err(error) => Err(error),
        };
        let reason = reason.map_or_else(|error| chain(&error), |()| "the bus is gone".to_owned());
        tracing::debug!(reason, "The system bus is not reached; trying again");
        shared.lose(reason);
        if began.elapsed() > LONGEST_PAUSE {
            pause = PAUSE;
        }
        time::sleep(pause).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// Looks at firewalld whenever it says that something changed, and tells it what it is to be told. Ends with
/// the connection.
async fn serve(shared: &Shared, bus: &Bus) -> Result<(), BusError> {
    let heard = bus.listen().await?;
    let mut service = Service::new(bus, shared.notes.clone());
    let mut closed = std::pin::pin!(bus.closed());
    let mut look_at = Some(Instant::now());
    let mut earliest = Instant::now();
    while !shared.is_over() {
        let mut failed = None;
        if look_at.is_some_and(|at| at <= Instant::now()) {
            let began = Instant::now();
            failed = look(shared, &mut service).await.err();
            earliest = Instant::now() + REST.min(began.elapsed() * SHARE);
            look_at = None;
        }
        if failed.is_none() {
            failed = tell(shared, &mut service).await.err();
        }
        if let Some(error) = failed {
            let reason = chain(&error);
            tracing::debug!(reason, "firewalld could not be asked; trying again");
            shared.complain(reason);
            look_at = Some(Instant::now() + AGAIN);
        }
        let wait = look_at.map_or(Duration::MAX, |at| {
            at.saturating_duration_since(Instant::now())
        });
        tokio::select! {
            () = &mut closed => return Ok(()),
            () = heard.notified() => {
                let soon = earliest.max(Instant::now() + GATHER);
                look_at = Some(look_at.map_or(soon, |at| at.min(soon)));
            }
            () = shared.ordered.notified() => {}
            () = time::sleep(wait) => {}
        }
    }

    Ok(())
}

async fn look(shared: &Shared, service: &mut Service<'_>) -> Result<(), BusError> {
    let (view, ours) = service.look().await?;
    shared.look(view, ours);

    Ok(())
}

/// Carries out what was ordered, then looks at what came of it.
async fn tell(shared: &Shared, service: &mut Service<'_>) -> Result<(), BusError> {
    let orders = shared.orders();
    if orders.is_empty() {
        return Ok(());
    }
    let mut outcomes = BTreeMap::new();
    for (opening, order) in orders {
        let outcome = match order {
            Order::Make => service.make(&opening).await,
            Order::TakeBack => service.take_back(&opening).await,
        };
        match &outcome {
            Ok(()) => tracing::info!(%opening, ?order, "Told firewalld"),
            Err(error) => {
                let reason = chain(error);
                tracing::debug!(%opening, ?order, reason, "firewalld did not do as told");
            }
        }
        outcomes.insert(opening, outcome.map_err(|error| chain(&error)));
    }
    let looked = look(shared, service).await;
    shared.settle(outcomes);

    looked
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;
    use crate::foreign::firewalld::{Firewalld, Thread};

    #[test]
    fn a_bus_that_hangs_up_is_called_ever_more_rarely() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("bus");
        let listener = UnixListener::bind(&socket).unwrap();
        let firewalld = Firewalld::new(folder.path().join("notes")).unwrap();
        let shared = firewalld.shared.clone();
        let courier = thread::spawn(move || run(&shared, &Address::of(socket)));

        let calls: Vec<Instant> = (0..3)
            .map(|_| {
                drop(listener.accept().unwrap());
                Instant::now()
            })
            .collect();
        assert!(calls[1] - calls[0] >= PAUSE, "{calls:?}");
        assert!(calls[2] - calls[1] >= 2 * PAUSE, "{calls:?}");
        assert_eq!(firewalld.generation(), 0, "nothing changed");

        // Where there is no bus any more, nobody waits for one.
        drop(folder);
        courier.join().unwrap();
        assert_eq!(firewalld.shared.lock().thread, Thread::Absent);
    }
}
