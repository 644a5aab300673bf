// @reply 2
() => this.messaging.requestMany('svc.many', '', { max: 2 }).length;
