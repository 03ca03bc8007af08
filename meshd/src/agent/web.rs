//! Metrics and health on loopback: Felix's ports and paths.

use std::net::SocketAddr;

use anyhow::Context;
use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::{net::TcpListener, sync::mpsc};

use super::api::{Ask, ask};

/// Serves `/metrics`, and `/readiness` and `/liveness`, each on its own address.
pub(crate) async fn serve(
    metrics: SocketAddr,
    health: SocketAddr,
    asks: mpsc::Sender<Ask>,
) -> anyhow::Result<()> {
    let scrape = Router::new()
        .route("/metrics", get(scrape))
        .with_state(asks.clone());
    let probes = Router::new()
        .route("/readiness", get(ready))
        .route("/liveness", get(alive))
        .with_state(asks);
    let listen = |address: SocketAddr| async move {
        TcpListener::bind(address)
            .await
            .with_context(|| format!("could not listen on {address}"))
    };
    let (metrics, health) = (listen(metrics).await?, listen(health).await?);

    tokio::try_join!(async { axum::serve(metrics, scrape).await }, async {
        axum::serve(health, probes).await
    },)
    .context("the metrics or health server failed")?;

    Ok(())
}

async fn scrape(State(asks): State<mpsc::Sender<Ask>>) -> Result<String, StatusCode> {
    ask(&asks, Ask::Metrics)
        .await
        .ok_or(StatusCode::SERVICE_UNAVAILABLE)
}

async fn ready(State(asks): State<mpsc::Sender<Ask>>) -> Result<StatusCode, (StatusCode, String)> {
    match ask(&asks, Ask::Ready).await {
        Some(Ok(())) => Ok(StatusCode::NO_CONTENT),
        Some(Err(reason)) => Err((StatusCode::SERVICE_UNAVAILABLE, reason + "\n")),
        None => Err((
            StatusCode::SERVICE_UNAVAILABLE,
            "the agent is going down\n".to_owned(),
        )),
    }
}

/// The loop is alive when it answers at all.
async fn alive(State(asks): State<mpsc::Sender<Ask>>) -> StatusCode {
    match ask(&asks, Ask::Ready).await {
        Some(_) => StatusCode::NO_CONTENT,
        None => StatusCode::SERVICE_UNAVAILABLE,
    }
}
