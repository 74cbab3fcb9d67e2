"""Trains one recipe and leaves its run directory in the notebook's output."""

if __name__ == "__main__":
    from kit.remote.session import Session
    from kit.remote.session_train import train

    train(Session.open())
