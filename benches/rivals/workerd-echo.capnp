# workerd as an echo over HTTP; `nex-bench rivals` says on the command line where it listens.
using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [(name = "main", worker = .echo)],
  sockets = [(name = "http", http = (), service = "main")],
);

const echo :Workerd.Worker = (
  modules = [(name = "worker", esModule = embed "workerd-echo.mjs")],
  compatibilityDate = "2026-11-01",
);
