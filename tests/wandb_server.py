"""A stand-in for wandb's server on the loopback: it answers `wandb sweep` and `wandb agent`, by their own engine."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from nonlocal_nets.experiments.history import history
from nonlocal_nets.experiments.sweep.engine import engine
from nonlocal_nets.run.folder import find

PROJECT = {"id": "1", "name": "project", "entity": {"id": "2", "name": "entity"}}


class Server(ThreadingHTTPServer):
    """Holds one sweep; proposes `limit` runs at most. The runs are offline: it reads their CSV logs."""

    def __init__(self, limit=100):
        super().__init__(("127.0.0.1", 0), Handler)
        self.limit = limit
        self.config, self.runs, self.stopped, self.operations = None, [], [], []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    @property
    def environment(self):
        """What a client needs."""
        return {
            "WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}",
            "WANDB_API_KEY": "0" * 40,
            "WANDB_ERROR_REPORTING": "false",
        }

    def answer(self, query, variables):
        operation = re.search(r"(?:query|mutation)\s+(\w+)", query)[1]
        self.operations.append(operation)
        return getattr(self, operation)(variables)

    def Viewer(self, _):
        return {"viewer": {"id": "3", "entity": "entity", "username": "user", "flags": "{}", "teams": {"edges": []}}}

    def UpsertSweep(self, variables):
        self.config = yaml.safe_load(variables["config"])
        warnings = engine().config.schema_violations_from_proposed_config(self.config)
        return {"upsertSweep": {"sweep": {"name": "sweep1", "project": PROJECT}, "configValidationWarnings": warnings}}

    def SweepWithRuns(self, _):
        sweep = {"id": "4", "name": "sweep1", "state": "RUNNING", "config": yaml.safe_dump(self.config)}
        return {"project": {"sweep": sweep | {"method": self.config["method"], "runs": {"edges": []}}}}

    def CreateAgent(self, _):
        return {"createAgent": {"agent": {"id": "5"}}}

    def Heartbeat(self, variables):
        running = json.loads(variables["runState"])
        for run in self.runs:
            if run.state == "running":
                values, _ = history(find(Path("runs"), run.name), self.config["metric"]["name"])
                run.history = [{self.config["metric"]["name"]: value} for value in values]
                if run.name not in running:
                    run.state = "killed" if run.name in self.stopped else "finished"
        commands = self.stops() if "early_terminate" in self.config else []
        return {"agentHeartbeat": {"agent": {"id": "5"}, "commands": json.dumps(commands or self.next(running))}}

    def stops(self):
        names = [run.name for run in engine().stop_runs(self.config, self.runs) if run.name not in self.stopped]
        self.stopped += names
        return [{"type": "stop", "run_id": name} for name in names]

    def next(self, running):
        if running:
            return []
        run = engine().next_run(self.config, self.runs) if len(self.runs) < self.limit else None
        if run is None:
            return [{"type": "exit"}]
        run.name, run.state = f"run{len(self.runs)}", "running"
        self.runs.append(run)
        args = json.loads(json.dumps(run.config, sort_keys=True, default=lambda number: number.item()))
        return [{"type": "run", "run_id": run.name, "program": self.config["program"], "args": args}]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            answer = {"data": self.server.answer(body["query"], body.get("variables", {}))}
        except AttributeError as error:
            answer = {"errors": [{"message": str(error)}]}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass
