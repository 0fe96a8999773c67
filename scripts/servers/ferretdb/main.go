// Command ferretdb answers the MongoDB protocol from a PostgreSQL with DocumentDB.
//
// It is FerretDB's embedded package and nothing else: `go install` of FerretDB itself is not possible,
// and its own command expects version files that only its release build generates.
package main

import (
	"context"
	"flag"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/FerretDB/FerretDB/v2/ferretdb"
)

func main() {
	postgres := flag.String("postgresql-url", "", "the PostgreSQL that has the documentdb extension")
	listen := flag.String("listen-addr", "127.0.0.1:27017", "where to listen")
	state := flag.String("state-dir", "", "a directory for the instance's state")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	telemetry := false

	server, err := ferretdb.New(&ferretdb.Config{
		PostgreSQLURL: *postgres,
		ListenAddr:    *listen,
		StateDir:      *state,
		LogOutput:     os.Stderr,
		Telemetry:     &telemetry,
	})
	if err != nil {
		log.Fatal(err)
	}

	server.Run(ctx)
}
