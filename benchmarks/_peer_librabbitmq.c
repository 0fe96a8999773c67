/* Publishes persistent, mandatory messages with confirms, at most WINDOW of them unconfirmed; what a C client can do.
 *
 * peer_librabbitmq HOST PORT USER PASSWORD VHOST EXCHANGE KEY COUNT WINDOW < BODY
 * Prints the wall time and CPU time per message in microseconds as one JSON object.
 */
#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/tcp_socket.h>
#else /* before 0.13 */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double seconds(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static void check(int ok, const char *what) {
  if (!ok) {
    fprintf(stderr, "librabbitmq: %s failed\n", what);
    exit(1);
  }
}

/* Reads one confirm, whose tag stands for all before it: with one queue the broker answers in order. */
static uint64_t next_confirm(amqp_connection_state_t connection) {
  amqp_frame_t frame;
  check(amqp_simple_wait_frame(connection, &frame) == AMQP_STATUS_OK, "reading");
  check(frame.frame_type == AMQP_FRAME_METHOD && frame.payload.method.id == AMQP_BASIC_ACK_METHOD, "a confirm");
  return ((amqp_basic_ack_t *)frame.payload.method.decoded)->delivery_tag;
}

int main(int argc, char **argv) {
  check(argc == 10, "reading its arguments");
  static char body[1 << 20];
  size_t size = fread(body, 1, sizeof body, stdin);
  uint64_t count = strtoull(argv[8], NULL, 10), window = strtoull(argv[9], NULL, 10);

  amqp_connection_state_t connection = amqp_new_connection();
  amqp_socket_t *socket = amqp_tcp_socket_new(connection);
  check(socket && amqp_socket_open(socket, argv[1], atoi(argv[2])) == AMQP_STATUS_OK, "connecting");
  check(amqp_login(connection, argv[5], 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, argv[3], argv[4]).reply_type ==
            AMQP_RESPONSE_NORMAL, "the login");
  amqp_channel_open(connection, 1);
  check(amqp_get_rpc_reply(connection).reply_type == AMQP_RESPONSE_NORMAL, "opening a channel");
  amqp_confirm_select(connection, 1);
  check(amqp_get_rpc_reply(connection).reply_type == AMQP_RESPONSE_NORMAL, "confirm.select");

  amqp_table_entry_t headers[2] = {{.key = amqp_cstring_bytes("hk_event_id")},
                                   {.key = amqp_cstring_bytes("x-request-id")}};
  for (int i = 0; i < 2; i++) {
    headers[i].value.kind = AMQP_FIELD_KIND_UTF8;
    headers[i].value.value.bytes = amqp_cstring_bytes("1f1e3c52-6a3c-6b7e-8d11-2f1f3a4b5c6d");
  }
  amqp_basic_properties_t properties = {
      ._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_HEADERS_FLAG |
                AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_TYPE_FLAG | AMQP_BASIC_APP_ID_FLAG,
      .content_type = amqp_cstring_bytes("application/json"), .delivery_mode = 2,
      .headers = {.num_entries = 2, .entries = headers},
      .message_id = amqp_cstring_bytes("1f1e3c52-6a3c-6b7e-8d11-2f1f3a4b5c6d"),
      .type = amqp_cstring_bytes(argv[7]), .app_id = amqp_cstring_bytes("bench_service")};

  double wall = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
  for (uint64_t sent = 0, confirmed = 0; confirmed < count;) {
    if (sent < count && sent - confirmed < window) {
      check(amqp_basic_publish(connection, 1, amqp_cstring_bytes(argv[6]), amqp_cstring_bytes(argv[7]), 1, 0,
                               &properties, (amqp_bytes_t){size, body}) == AMQP_STATUS_OK, "publishing");
      sent++;
    } else {
      uint64_t answered = next_confirm(connection);
      confirmed = answered > confirmed ? answered : confirmed;
      amqp_maybe_release_buffers(connection);
    }
  }
  printf("{\"cpu\": %f, \"wall\": %f}\n", (seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu) / count * 1e6,
         (seconds(CLOCK_MONOTONIC) - wall) / count * 1e6);
  amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
  amqp_destroy_connection(connection);
  return 0;
}
