// @load-error function
({ not: 'a function' });
