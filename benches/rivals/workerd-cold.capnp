# workerd with the worker loader, which makes an isolate for each function that it has not run before.
using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [(name = "main", worker = .parent)],
  sockets = [(name = "http", http = (), service = "main")],
);

const parent :Workerd.Worker = (
  modules = [(name = "worker", esModule = embed "workerd-cold.mjs")],
  bindings = [(name = "LOADER", workerLoader = (id = "functions"))],
  compatibilityDate = "2026-11-01",
);
