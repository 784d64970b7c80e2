/* stream_client CONNECTIONS SECONDS RAMP_MS PORT REQUESTS: streams of a server on loopback, one after another on each
   connection, and how late what they carry is.

   The file REQUESTS holds whole HTTP requests, each ended by a NUL; connections take turns with them. They
   begin spread over RAMP_MS, which is not measured. Prints one line of JSON: chunks (those of
   paced_backend.c, told by ~NANOSECONDS~) and streams that ended within SECONDS, errors, how late chunks were, and the
   longest gap between two chunks of one stream. The first error is told on stderr. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD = 16384 };
enum state { IN_HEAD, IN_SIZE, IN_SIZE_LINE, IN_CHUNK, AFTER_CHUNK, IN_TRAILER, IN_LENGTH, IN_REST };

struct client {
  int fd, state, is_marked, is_connected;
  size_t filled, asked; /* bytes of the head; which request is next */
  unsigned long long left, mark;
  int trailer; /* bytes of the line of the trailer */
  long long last; /* when the stream's last chunk came, 0 before the first */
  char head[HEAD + 1];
};

static int poller;
static struct client *clients;
static int connections;
static char **requests;
static size_t *sizes, request_count;
static struct sockaddr_in place = {.sin_family = AF_INET};
static long long begin, end;
static uint32_t *late;
static size_t late_count, late_room;
static long chunks, streams, errors, long_gaps;
static long long longest_gap;

static void die(const char *what) {
  perror(what);
  exit(1);
}

static long long now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void ask(struct client *c) {
  size_t which = c->asked++ * 7919 % request_count;
  c->state = IN_HEAD;
  c->filled = c->is_marked = 0;
  c->last = 0;
  if (send(c->fd, requests[which], sizes[which], MSG_NOSIGNAL) != (ssize_t)sizes[which]) shutdown(c->fd, SHUT_RDWR);
}

static void go(struct client *c) {
  int one = 1;
  c->is_connected = 0;
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (c->fd < 0) die("socket");
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(c->fd, (struct sockaddr *)&place, sizeof place) && errno != EINPROGRESS) die("connect");
  struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
  if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
}

static void fail(struct client *c, const char *why) {
  if (!errors++) {
    c->head[c->filled] = 0;
    fprintf(stderr, "stream_client: %s; the answer so far: %.300s\n", why, c->head);
  }
  close(c->fd);
  if (errors > 1000) exit(1);
  go(c);
}

static void note(struct client *c, long long now) {
  if (now >= begin && now < end) {
    long long by = now - (long long)c->mark;
    chunks++;
    if (late_count == late_room) late = realloc(late, (late_room = late_room * 2 + 65536) * sizeof *late);
    late[late_count++] = by > 0 ? by / 1000 : 0;
    long long gap = c->last ? now - c->last : 0;
    if (gap > longest_gap) longest_gap = gap;
    long_gaps += gap > 50000000;
  }
  c->last = now;
}

/* Look for ~NANOSECONDS~ in a piece of the body. */
static void scan(struct client *c, const char *at, const char *stop, long long now) {
  while (at < stop) {
    if (!c->is_marked) {
      at = memchr(at, '~', stop - at);
      if (!at) return;
      at++;
      c->is_marked = 1;
      c->mark = 0;
    }
    while (at < stop && *at >= '0' && *at <= '9') c->mark = c->mark * 10 + (*at++ - '0');
    if (at == stop) return;
    c->is_marked = 0;
    if (*at++ == '~') note(c, now);
  }
}

static int read_head(struct client *c) {
  c->head[c->filled] = 0;
  if (strncmp(c->head, "HTTP/1.1 200", 12)) return -1;
  char *length = strcasestr(c->head, "\r\ncontent-length:");
  if (strcasestr(c->head, "\r\ntransfer-encoding: chunked")) c->state = IN_SIZE;
  else if (length) c->state = IN_LENGTH;
  else c->state = IN_REST;
  c->left = length ? strtoull(length + 17, NULL, 10) : 0;
  return 0;
}

/* Take what came. Returns 1 when the answer is whole, -1 when it is none. */
static int take(struct client *c, const char *at, const char *stop, long long now) {
  while (at < stop) {
    size_t size = stop - at;
    switch (c->state) {
    case IN_HEAD:
      if (c->filled == HEAD) return -1;
      c->head[c->filled++] = *at++;
      if (c->filled >= 4 && !memcmp(c->head + c->filled - 4, "\r\n\r\n", 4) && read_head(c)) return -1;
      break;
    case IN_SIZE: {
      char digit = *at | 32;
      if (*at >= '0' && *at <= '9') c->left = c->left * 16 + (*at++ - '0');
      else if (digit >= 'a' && digit <= 'f') c->left = c->left * 16 + (digit - 'a' + 10), at++;
      else c->state = IN_SIZE_LINE;
      break;
    }
    case IN_SIZE_LINE:
      if (*at++ == '\n') c->state = c->left ? IN_CHUNK : IN_TRAILER, c->trailer = 0;
      break;
    case IN_CHUNK:
    case IN_LENGTH:
      if (size > c->left) size = c->left;
      scan(c, at, at + size, now);
      at += size;
      c->left -= size;
      if (!c->left && c->state == IN_LENGTH) return 1;
      if (!c->left) c->state = AFTER_CHUNK;
      break;
    case AFTER_CHUNK:
      if (*at++ == '\n') c->state = IN_SIZE;
      break;
    case IN_TRAILER:
      if (*at == '\n' && c->trailer == 0) return 1;
      c->trailer = *at == '\n' ? 0 : c->trailer + (*at != '\r');
      at++;
      break;
    case IN_REST:
      scan(c, at, stop, now);
      at = stop;
    }
  }
  return 0;
}

static void ready(struct client *c) {
  static char buffer[65536];
  if (!c->is_connected) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    c->is_connected = 1;
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event)) die("epoll_ctl");
    ask(c);
    return;
  }
  ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
  long long now = now_ns();
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) {
    if (c->state != IN_REST) {
      fail(c, got ? strerror(errno) : "the connection was closed");
      return;
    }
    close(c->fd);
    go(c);
  } else {
    int what = take(c, buffer, buffer + got, now);
    if (!what) return;
    if (what < 0) {
      fail(c, "this is no good answer");
      return;
    }
    ask(c);
  }
  streams += now >= begin && now < end;
}

static int compare(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

static void read_requests(const char *name) {
  FILE *file = fopen(name, "rb");
  if (!file) die(name);
  char *text = NULL;
  size_t room = 0;
  ssize_t size;
  while ((size = getdelim(&text, &room, 0, file)) > 1) {
    requests = realloc(requests, (request_count + 1) * sizeof *requests);
    sizes = realloc(sizes, (request_count + 1) * sizeof *sizes);
    requests[request_count] = text;
    sizes[request_count++] = size - 1;
    text = NULL;
    room = 0;
  }
  fclose(file);
}

int main(int argc, char **argv) {
  if (argc != 6) return fprintf(stderr, "usage: stream_client CONNECTIONS SECONDS RAMP_MS PORT REQUESTS\n"), 2;
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  connections = atoi(argv[1]);
  long long ramp = atoll(argv[3]) * 1000000, start = now_ns();
  begin = start + ramp;
  end = begin + (long long)(atof(argv[2]) * 1e9);
  place.sin_port = htons(atoi(argv[4]));
  place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  read_requests(argv[5]);
  poller = epoll_create1(0);
  clients = calloc(connections, sizeof *clients);
  int begun = 0;
  struct epoll_event events[256];
  for (long long now = start; now < end; now = now_ns()) {
    while (begun < connections && now >= start + ramp * begun / connections) {
      clients[begun].asked = begun;
      go(&clients[begun++]);
    }
    int count = epoll_wait(poller, events, 256, begun < connections ? 1 : 20);
    if (count < 0 && errno != EINTR) die("epoll_wait");
    for (int i = 0; i < count; i++) ready(events[i].data.ptr);
  }
  qsort(late, late_count, sizeof *late, compare);
  double p50 = late_count ? late[late_count / 2] / 1e3 : 0;
  double p99 = late_count ? late[(size_t)(late_count * 0.99)] / 1e3 : 0;
  double most = late_count ? late[late_count - 1] / 1e3 : 0;
  printf("{\"chunks\": %ld, \"streams\": %ld, \"errors\": %ld, \"seconds\": %g, \"late_p50_ms\": %.3f, "
         "\"late_p99_ms\": %.3f, \"late_most_ms\": %.3f, \"longest_gap_ms\": %.3f, \"gaps_over_50_ms\": %ld}\n",
         chunks, streams, errors, (end - begin) / 1e9, p50, p99, most, longest_gap / 1e6, long_gaps);
  return 0;
}
