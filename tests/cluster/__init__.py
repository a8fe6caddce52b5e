"""Jobs on clusters that are made for them on one machine; `make test-cluster`."""
