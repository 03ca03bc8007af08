//! Kubernetes services.
