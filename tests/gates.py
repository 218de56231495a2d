"""A gate between a client and a real server, for tests of servers that are slow, go and come back."""

import socket
import threading
import time


class Gate:
    """Stands between a client and a real server: lets through, is slow, refuses, or loses answers."""

    def __init__(self, uri: str) -> None:
        self.mode = "open"
        self.lost = 0
        self._server = ("127.0.0.1", int(uri.rpartition(":")[2]))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            client, _ = self._listening.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self.mode == "down":
            client.close()
            return
        server = socket.create_connection(self._server)
        threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
        self._pass(server, client, True)

    def _pass(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        try:
            while data := source.recv(65536):
                if self.mode == "down" or (answers and self.mode == "loses answers"):
                    self.lost += answers
                    break
                if answers and self.mode == "slow":
                    time.sleep(0.3)
                target.sendall(data)
        except OSError:
            pass  # the other direction has ended
        source.close()
        target.close()
